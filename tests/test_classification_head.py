"""The clip head against NumPy means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import ModelConfig
from sptad_jax.models.classification_head import ClassificationHead, step_mask
from tests.reference.parameters import draw_variables, run_once

RNG = np.random.default_rng(0)
FEATURES = [RNG.normal(size=(3, t, 2, 2, c)).astype(np.float32) for t, c in ((8, 5), (4, 6), (2, 7))]
NUM_FRAMES = np.array([16, 9, 4])
MASK = np.arange(16) < NUM_FRAMES[:, None]


@pytest.mark.parametrize("pooling", ["masked", "plain"])
def test_equals_numpy(pooling):
    """Means written out per example: catches padded steps that count, or a real step that is dropped."""
    module = ClassificationHead(ModelConfig(clip_pooling=pooling), num_classes=4)
    variables = draw_variables(module, FEATURES, MASK)
    params = variables["params"]["logits"]
    actual = run_once(module.apply, variables, FEATURES, MASK)
    for b in range(3):
        pooled = []
        for x in FEATURES:
            stride = 16 // x.shape[1]
            real = [t for t in range(x.shape[1]) if pooling == "plain" or MASK[b, t * stride : (t + 1) * stride].any()]
            pooled.append(np.mean([x[b, t].mean(axis=(0, 1)) for t in real], axis=0))
        expected = np.concatenate(pooled) @ params["kernel"] + params["bias"]
        np.testing.assert_allclose(actual[b], expected, rtol=1e-4, atol=1e-6)


def test_no_mask_means_all_real():
    """frame_mask None equals a mask of ones."""
    module = ClassificationHead(ModelConfig(), num_classes=4)
    variables = draw_variables(module, FEATURES, None)
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(
        apply(variables, FEATURES, None), apply(variables, FEATURES, np.ones_like(MASK)), rtol=1e-5)  # fmt: skip


def test_step_mask_of_odd_length():
    """A level rounds its length up: its last, shorter step needs a frame as well."""
    mask = np.arange(10)[None] < np.array([[8], [9]])
    np.testing.assert_array_equal(step_mask(jnp.asarray(mask), 3), [[True, True, False], [True, True, True]])


def test_empty_clip_and_bfloat16_stay_finite_float32():
    """A window without a real frame must not divide by 0; logits are float32 whatever the compute type."""
    module = ClassificationHead(ModelConfig(), 4, jnp.dtype("bfloat16"))
    variables = draw_variables(module, FEATURES, MASK)
    logits = run_once(module.apply, variables, FEATURES, np.zeros_like(MASK))
    assert logits.dtype == jnp.float32 and np.isfinite(logits).all()
    np.testing.assert_allclose(logits, np.broadcast_to(variables["params"]["logits"]["bias"], (3, 4)), atol=2e-3)
