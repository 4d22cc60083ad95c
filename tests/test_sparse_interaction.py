"""The dynamic convolution of Figure 3 against torch's bmm, linear and layer_norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.models.sparse_interaction import SparseInteraction
from tests.reference.parameters import draw_variables, run_once

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 5, 16)).astype(np.float32)
SOI = RNG.normal(size=(2, 5, 4, 16)).astype(np.float32)


def test_equals_torch(precision, parity):
    """Copied weights: catches swapped halves of the generator, a transposed product, a wrong flattening order."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_stage import interact
    from tests.reference.torch_trees import cast, gradients, tensors

    module = SparseInteraction(6, jnp.dtype(precision))
    args = cast((draw_variables(module, FEATURES, SOI)["params"], FEATURES, SOI), precision)
    weight = cast(RNG.normal(size=FEATURES.shape), precision)

    def combine(params, features, soi):
        output = module.apply({"params": params}, features, soi)
        return (output * weight).sum(), output

    ours, actual = run_once(jax.grad(combine, (0, 1, 2), has_aux=True), *args)
    theirs = tensors(args)
    expected = interact(*theirs, dynamic_dim=6)
    expected.backward(torch.tensor(weight))
    parity("output", actual, expected)
    for what, found, other in zip(("parameters", "proposal features", "SoI features"), ours, gradients(theirs)):
        parity(f"gradient by the {what}", found, other)


def test_each_proposal_sees_only_its_own_segment():
    """Changing one SoI changes one output ("local attention", 3.1.3): catches mixing across proposals or the batch."""
    module = SparseInteraction(dynamic_dim=6)
    variables = draw_variables(module, FEATURES, SOI)
    apply = jax.jit(module.apply)
    changed = SOI.copy()
    changed[1, 3] += 1.0
    same = np.isclose(apply(variables, FEATURES, SOI), apply(variables, FEATURES, changed)).all(axis=-1)
    assert not same[1, 3] and same.sum() == same.size - 1


def test_parameter_shapes_and_dtype():
    """D 256, d_h 64, K 16: the generator makes 2 x 256 x 64 numbers; bfloat16 compute keeps float32 parameters."""
    module = SparseInteraction(64, jnp.dtype("bfloat16"))
    output, variables = jax.eval_shape(
        lambda f, s: module.init_with_output(jax.random.key(0), f, s),
        jax.ShapeDtypeStruct((2, 50, 256), jnp.float32),
        jax.ShapeDtypeStruct((2, 50, 16, 256), jnp.float32),
    )
    assert output.shape == (2, 50, 256) and output.dtype == jnp.bfloat16
    assert variables["params"]["generator"]["kernel"].shape == (256, 32768)
    assert variables["params"]["output"]["kernel"].shape == (16 * 256, 256)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
