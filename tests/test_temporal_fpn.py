"""The temporal pyramid against torch's Conv1d, interpolate and max_pool1d."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.models import temporal_fpn
from tests.reference.parameters import draw_variables, run_once

RNG = np.random.default_rng(0)
FEATURES = [RNG.normal(size=(2, t, s, s, c)).astype(np.float32) for t, s, c in ((16, 4, 6), (8, 2, 10), (4, 2, 12))]
TINY = ModelConfig(hidden_dim=8)


def torch_pyramid(features, params, config):
    """The same pyramid from torch's operators, [B, C, T] inside; takes and returns tensors."""
    import torch.nn.functional as F

    def norm(x, name):
        if config.fpn_norm == "none":
            return x
        scale, bias = params[f"{name}_norm"]["scale"], params[f"{name}_norm"]["bias"]
        if config.fpn_norm == "group":
            return F.group_norm(x, 8, scale, bias, 1e-5)
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],), scale, bias, 1e-5).transpose(1, 2)

    def conv(x, name, stride=1):
        kernel, bias = params[name]["kernel"].permute(2, 1, 0), params[name]["bias"]
        return norm(F.conv1d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2), name)

    used = features if config.pyramid == "inter" else features[-1:]
    laterals = []
    for i, x in enumerate(used):
        x = x.permute(0, 4, 1, 2, 3)  # [B, C, T, H, W]
        if config.fpn_spatial == "mean":
            laterals.append(conv(x.mean(dim=(3, 4)), f"lateral_{i}"))
        else:
            kernel, bias = params[f"lateral_{i}"]["kernel"], params[f"lateral_{i}"]["bias"]
            taps, _, out = kernel.shape
            kernel = kernel.reshape(taps, x.shape[3], x.shape[4], x.shape[1], out).permute(4, 3, 0, 1, 2)
            laterals.append(norm(F.conv3d(x, kernel, bias, padding=(taps // 2, 0, 0))[..., 0, 0], f"lateral_{i}"))
    if config.pyramid == "high":
        laterals.append(conv(laterals[-1], "downsample_0", 2))
        laterals.append(conv(laterals[-1], "downsample_1", 2))
    for i in range(len(laterals) - 2, -1, -1):
        options = {} if config.fpn_interpolation == "nearest" else {"align_corners": False}
        coarse = F.interpolate(laterals[i + 1], scale_factor=2, mode=config.fpn_interpolation, **options)
        laterals[i] = laterals[i] + coarse
    levels = [conv(x, f"output_{i}") for i, x in enumerate(laterals)] if config.fpn_output_conv else laterals
    if config.pyramid != "single":
        kernel = config.fpn_pool_kernel
        levels.append(F.max_pool1d(levels[-1], kernel, 2, padding=(kernel - 1) // 2))
    return [x.transpose(1, 2) for x in levels]


@pytest.mark.parametrize("lengths", [(4, 8, 16), (16, 16, 8), (16, 4), (16, 9)])
def test_end_points_of_other_moments_are_refused(lengths):
    """Catches a sum of coarse and fine features of different moments: cut to one length, the shapes would fit."""
    features = [jnp.zeros((1, t, 2, 2, 3)) for t in lengths]
    module = temporal_fpn.TemporalFPN(TINY)
    with pytest.raises(UserError, match=f"they have {', '.join(map(str, lengths))}"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), features))
    last_only = temporal_fpn.TemporalFPN(dataclasses.replace(TINY, pyramid="single"))
    jax.eval_shape(lambda: last_only.init(jax.random.key(0), features))


@pytest.mark.parametrize("changes", [
    {},
    {"fpn_lateral_kernel": 3, "fpn_interpolation": "linear", "fpn_norm": "layer", "fpn_pool_kernel": 3},
    {"fpn_norm": "group", "fpn_output_conv": False, "fpn_pool_kernel": 2},
    {"pyramid": "single", "fpn_lateral_kernel": 3},
    {"pyramid": "high"},
    {"fpn_spatial": "conv", "fpn_lateral_kernel": 3, "fpn_output_conv": False},
], ids=lambda c: "-".join(map(str, c.values())) or "defaults")  # fmt: skip
def test_equals_torch(changes, precision, parity):
    """Every pyramid option with copied weights: catches wrong taps, padding, order of sums, and modes of resampling."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_trees import cast, gradients, tensors

    config = dataclasses.replace(TINY, **changes)
    module = temporal_fpn.TemporalFPN(config, jnp.dtype(precision))
    args = cast((draw_variables(module, FEATURES)["params"], FEATURES), precision)
    theirs = tensors(args)
    expected = torch_pyramid(theirs[1], theirs[0], config)
    weights = cast([RNG.normal(size=x.shape) for x in expected], precision)
    torch.autograd.backward(expected, [torch.tensor(x) for x in weights])

    def combine(params, features):
        levels = module.apply({"params": params}, features)
        return sum((level * weight).sum() for level, weight in zip(levels, weights, strict=True)), levels

    ours, levels = run_once(jax.grad(combine, (0, 1), has_aux=True), *args)
    parity("levels", levels, expected)
    for what, found, other in zip(("parameters", "features"), ours, gradients(theirs)):
        parity(f"gradients by the {what}", found, other)


@pytest.mark.parametrize("frames, pyramid, lengths", [
    (256, "inter", (128, 64, 32, 16)), (768, "inter", (384, 192, 96, 48)), (256, "single", (32,)),
    (256, "high", (32, 16, 8, 4)), (48, "high", (6, 3, 2, 1)),
])  # fmt: skip
def test_lengths_at_paper_scale(frames, pyramid, lengths):
    """3.1.2: strides 2, 4, 8, 16 and 256 channels; odd lengths round up without an error."""
    shapes = [jax.ShapeDtypeStruct((2, frames // k, s, s, c), jnp.float32)
              for k, s, c in ((2, 12, 960), (4, 6, 1664), (8, 3, 2048))]  # fmt: skip
    module = temporal_fpn.TemporalFPN(ModelConfig(pyramid=pyramid))
    levels, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), shapes)
    assert [x.shape for x in levels] == [(2, t, 256) for t in lengths]


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_max_pool_odd_length(kernel):
    """Written out: catches a window that slides off the end and padding that wins over negative values."""
    x = -np.abs(RNG.normal(size=(1, 7, 2))).astype(np.float32)
    before = (kernel - 1) // 2
    expected = [x[0, max(0, 2 * i - before) : 2 * i - before + kernel].max(axis=0) for i in range(4)]
    np.testing.assert_array_equal(temporal_fpn.max_pool(jnp.asarray(x), kernel)[0], expected)


def test_upsample_cuts_to_odd_length():
    """Fine step i must stay inside coarse step i // 2."""
    x = jnp.arange(3.0)[None, :, None]
    np.testing.assert_array_equal(temporal_fpn.upsample(x, 5, "nearest")[0, :, 0], [0, 0, 1, 1, 2])
    np.testing.assert_allclose(temporal_fpn.upsample(x, 5, "linear")[0, :, 0], [0, 0.25, 0.75, 1.25, 1.75], atol=1e-6)


def test_bfloat16_keeps_parameters_in_float32():
    """compute_dtype concerns products: catches parameters that would lose their updates."""
    module = temporal_fpn.TemporalFPN(TINY, jnp.dtype("bfloat16"))
    levels, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), FEATURES)
    assert {x.dtype for x in levels} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
