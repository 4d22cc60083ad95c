"""The whole detector: shapes, wiring of streams and options, and one real forward and backward pass."""

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.models import sptad
from tests.reference.parameters import draw_variables, run_once

TINY = ModelConfig(
    width_multiplier=0.125, hidden_dim=16, num_heads=4, dynamic_dim=4, ffn_dim=16, soi_bins=4, num_proposals=5,
    num_stages=2)  # fmt: skip
RNG = np.random.default_rng(0)
INPUTS = {"rgb": RNG.uniform(-1, 1, (2, 16, 32, 32, 3)).astype(np.float32),
          "flow": RNG.uniform(-1, 1, (2, 16, 32, 32, 2)).astype(np.float32)}  # fmt: skip
MASK = np.arange(16) < np.array([[16], [9]])


def shapes_of(inputs=INPUTS, **changes):
    module = sptad.SPTAD(dataclasses.replace(TINY, **changes), num_classes=3)
    return jax.eval_shape(
        lambda x, m: module.init_with_output(jax.random.key(0), x, m, train=True), inputs, MASK)  # fmt: skip


class PooledFrames(nn.Module):
    """Stands in for I3D where its weights do not matter: strided means of the input, and one parameter."""

    width_multiplier: float
    end_points: tuple[str, ...]
    bn_mode: str
    bn_momentum: float
    conv_mode: str
    remat: bool
    dtype: jnp.dtype
    seen: typing.ClassVar[list] = []

    @nn.compact
    def __call__(self, x, *, train):
        self.seen.append(self)
        x = x * self.param("gain", nn.initializers.ones, (x.shape[-1],))
        levels = {}
        for index, name in enumerate(self.end_points):
            t, s = 2 << index, 8 << index
            b, f, h, w, c = x.shape
            levels[name] = x.reshape(b, f // t, t, h // s, s, w // s, s, c).mean(axis=(2, 4, 6)).astype(self.dtype)
        return levels


@pytest.fixture
def pooled_frames(monkeypatch):
    PooledFrames.seen.clear()
    monkeypatch.setattr(sptad, "I3D", PooledFrames)


def test_real_forward_and_backward_are_finite():
    """I3D, pyramid and heads together on short end points: every parameter but frozen ones learns, nothing is NaN."""
    config = dataclasses.replace(TINY, end_points=("Mixed_3b", "MaxPool3d_4a_3x3"), num_stages=1)
    module = sptad.SPTAD(config, num_classes=3)
    variables = draw_variables(module, INPUTS, MASK, train=True)

    def loss(params):
        predictions, _ = module.apply({**variables, "params": params}, INPUTS, MASK, train=True)
        return sum((x**2).mean() for x in predictions.values()), predictions

    (_, predictions), grads = run_once(jax.value_and_grad(loss, has_aux=True), variables["params"])
    assert {k: v.shape for k, v in predictions.items()} == {
        "class_logits": (1, 2, 5, 3), "segments_se": (1, 2, 5, 2), "clip_logits": (2, 3)}  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((predictions, grads)))
    for stream in ("rgb", "flow"):
        assert np.abs(grads[f"backbone_{stream}"]["Conv3d_1a_7x7"]["conv3d"]["kernel"]).max() > 0
    assert np.abs(grads["temporal_fpn"]["lateral_0"]["kernel"]).max() > 0


@pytest.mark.parametrize("changes, levels, modules", [
    ({}, 4, {"backbone_rgb", "backbone_flow", "temporal_fpn", "detection_head", "classification_head"}),
    ({"streams": ("rgb",), "clip_head": False}, 4, {"backbone_rgb", "temporal_fpn", "detection_head"}),
    ({"pyramid": "single", "streams": ("flow",)}, 1,
     {"backbone_flow", "temporal_fpn", "detection_head", "classification_head"}),
], ids=["both", "rgb", "flow-single"])  # fmt: skip
def test_parameter_paths_and_shapes(changes, levels, modules):
    """The real I3D in shapes: parameter paths are an interface; predictions are float32; intermediates are named."""
    (predictions, out), variables = shapes_of(**changes)
    assert set(variables["params"]) == modules
    assert ("clip_logits" in predictions) == ("classification_head" in modules)
    assert {x.dtype for x in predictions.values()} == {jnp.dtype("float32")}
    assert predictions["class_logits"].shape == (2, 2, 5, 3)
    assert sum(name.startswith("pyramid/level_") for name in out) == levels
    assert {"fused/Mixed_5c", "stage_0/soi_features", "stage_1/segments_se", "segments_se"} <= set(out)


def test_early_fusion_concatenates_channels(pooled_frames):
    """3.1.1: same-level RGB and flow features side by side, RGB first."""
    module = sptad.SPTAD(TINY, num_classes=3)
    variables = draw_variables(module, INPUTS, MASK, train=False)
    _, out = run_once(lambda v: module.apply(v, INPUTS, MASK, train=False), variables)
    for name in TINY.end_points:
        np.testing.assert_array_equal(out[f"fused/{name}"][..., :3], out[f"rgb/{name}"])
        np.testing.assert_array_equal(out[f"fused/{name}"][..., 3:], out[f"flow/{name}"])


def test_late_fusion_keeps_streams_apart(pooled_frames):
    """One detector per stream, stage-major order, mean of clip logits; each stream's part depends on it alone."""
    config = dataclasses.replace(TINY, fusion="late")
    module = sptad.SPTAD(config, num_classes=3)
    variables = draw_variables(module, INPUTS, MASK, train=False)
    assert set(variables["params"]) == {"backbone_rgb", "backbone_flow", "rgb", "flow"}
    assert set(variables["params"]["flow"]) == {"temporal_fpn", "detection_head", "classification_head"}
    apply = jax.jit(lambda x: module.apply(variables, x, MASK, train=False))
    predictions, out = apply(INPUTS)
    for k in range(2):
        for g, stream in enumerate(("rgb", "flow")):
            for name in ("class_logits", "segments_se"):
                np.testing.assert_array_equal(predictions[name][2 * k + g], out[f"{stream}/stage_{k}/{name}"])
    np.testing.assert_allclose(
        predictions["clip_logits"], (out["rgb/clip_logits"] + out["flow/clip_logits"]) / 2, rtol=1e-6)  # fmt: skip
    changed, _ = apply({**INPUTS, "flow": INPUTS["flow"][:, ::-1]})
    np.testing.assert_array_equal(changed["class_logits"][0::2], predictions["class_logits"][0::2])
    assert np.abs(changed["class_logits"][1::2] - predictions["class_logits"][1::2]).max() > 1e-4


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_final_predictions(fusion):
    """The last stage alone; late fusion joins both streams' proposals, matching logits with their segments."""
    groups = 2 if fusion == "late" else 1
    logits = np.arange(3 * groups * 2 * 4 * 5.0).reshape(3 * groups, 2, 4, 5)
    config = dataclasses.replace(TINY, fusion=fusion)
    joined, segments_se = sptad.final_predictions({"class_logits": logits, "segments_se": logits[..., :2]}, config)
    assert joined.shape == (2, 4 * groups, 5) and segments_se.shape == (2, 4 * groups, 2)
    for g in range(groups):
        np.testing.assert_array_equal(joined[:, 4 * g : 4 * g + 4], logits[2 * groups + g])
    np.testing.assert_array_equal(segments_se, joined[..., :2])


def test_backbone_receives_its_options(pooled_frames):
    """Catches a backbone option that stops at the detector."""
    options = {"width_multiplier": 0.5, "bn_mode": "train", "bn_momentum": 0.9, "conv_mode": "direct", "remat": True,
               "end_points": ("Mixed_4f", "Mixed_5c"), "compute_dtype": "bfloat16"}  # fmt: skip
    shapes_of(**options)
    assert {x.name for x in PooledFrames.seen} == {"backbone_rgb", "backbone_flow"}
    for backbone in PooledFrames.seen:
        for name, value in options.items():
            assert getattr(backbone, "dtype" if name == "compute_dtype" else name) == value


def test_bfloat16_stays_close(pooled_frames):
    """Products in bfloat16, predictions and parameters in float32: catches box arithmetic in half precision."""
    results = []
    for dtype in ("float32", "bfloat16"):
        module = sptad.SPTAD(dataclasses.replace(TINY, compute_dtype=dtype, num_stages=1), num_classes=3)
        variables = draw_variables(module, INPUTS, MASK, train=False)
        assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
        results.append(run_once(lambda v, m=module: m.apply(v, INPUTS, MASK, train=False), variables))
    (exact, _), (rounded, out) = results
    assert out["pyramid/level_0"].dtype == jnp.bfloat16
    for name in exact:
        assert rounded[name].dtype == jnp.float32
        np.testing.assert_allclose(rounded[name], exact[name], atol=0.15)


def test_mask_reaches_the_clip_head(pooled_frames):
    """What stands in padded frames must not change the clip logits, unless pooling is plain."""
    padded = {k: np.where(MASK[:, :, None, None, None], v, 0.5) for k, v in INPUTS.items()}
    padded = {k: v.astype(np.float32) for k, v in padded.items()}
    mask = np.arange(16) < np.array([[16], [8]])  # a whole number of steps on every level
    for pooling in ("masked", "plain"):
        module = sptad.SPTAD(dataclasses.replace(TINY, clip_pooling=pooling, num_stages=1), num_classes=3)
        variables = draw_variables(module, INPUTS, mask, train=False)
        one, other = run_once(
            lambda v, m=module: [m.apply(v, x, mask, train=False)[0]["clip_logits"] for x in (INPUTS, padded)],
            variables)  # fmt: skip
        assert np.allclose(one, other, atol=1e-6) == (pooling == "masked")


def test_missing_stream_is_named():
    """A dataset without flow and a model that wants it: one sentence, not a KeyError."""
    with pytest.raises(UserError, match=r"model\.streams asks for flow"):
        shapes_of(inputs={"rgb": INPUTS["rgb"]})
