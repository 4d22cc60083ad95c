"""I3D (3.1.1): Inception-v1 inflated to 3-D, with the end points that the detector reads.

Widths, kernels and strides: google-deepmind/kinetics-i3d i3d.py and AFSD/common/i3d_backbone.py:196-296. Parameter
paths are the TensorFlow scope names, so that converted Kinetics weights need no renaming table.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sptad_jax.errors import UserError
from sptad_jax.models.conv3d import Mode, Size3, conv3d
from sptad_jax.models.max_pool3d import max_pool3d
from sptad_jax.precision import wide

Array = jax.Array

BATCH_NORM_EPS = 1e-3  # sonnet/python/modules/batch_norm.py:141 (v1)

# Channels of an Inception block: branch 0, branch 1 (reduce, 3x3x3), branch 2 (reduce, 3x3x3), branch 3 after the pool.
_MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# name -> (output channels, kernel, strides)
_CONVS: dict[str, tuple[int, Size3, Size3]] = {
    "Conv3d_1a_7x7": (64, (7, 7, 7), (2, 2, 2)),
    "Conv3d_2b_1x1": (64, (1, 1, 1), (1, 1, 1)),
    "Conv3d_2c_3x3": (192, (3, 3, 3), (1, 1, 1)),
}
# name -> (window, strides)
_POOLS: dict[str, tuple[Size3, Size3]] = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
END_POINTS = tuple(sorted((*_CONVS, *_POOLS, *_MIXED), key=lambda name: name.split("_")[1]))  # 1a, 2a, 2b .. 5c
_STEM = END_POINTS[: END_POINTS.index("Mixed_3b")]


def is_batch_norm_path(path: Iterable[Any]) -> bool:
    """Whether a parameter path (strings, or the key entries of `jax.tree_util`) lies in a batch normalisation.

    The optimiser masks these parameters when `bn_mode` is "frozen": a zero gradient alone would leave weight decay.
    """
    return any(getattr(part, "key", getattr(part, "name", part)) == "batch_norm" for part in path)


def scaled_channels(channels: int, width_multiplier: float) -> int:
    """`channels * width_multiplier` at the nearest multiple of 4, at least 4; a multiplier of 1 changes nothing."""
    if width_multiplier == 1:
        return channels
    return max(4, 4 * math.floor(channels * width_multiplier / 4 + 0.5))


def he_truncated_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal cut at two deviations, of variance 2 / (inputs times taps), for layers that a ReLU follows.

    Drawn flat, at a power of two: XLA's CPU compiler needs 35 s for 57 five-dimensional draws and 5 s for these.
    """
    size = math.prod(shape)
    draw = jax.random.truncated_normal(key, -2, 2, (1 << (size - 1).bit_length(),), dtype)[:size]
    return draw.reshape(shape) * (math.sqrt(2 / math.prod(shape[:-1])) / 0.87962566)  # deviation of the cut normal


class ConvKernel(nn.Module):
    """Holds `kernel` [kt, kh, kw, C, O] float32."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", he_truncated_normal, self.shape)


class BatchNorm(nn.Module):
    """Turns batch normalisation over [..., C] into a multiplier and a shift per channel, both [C] float32.

    `moments` (mean and variance of the batch; of the global one under `jit` on a sharded batch) are used and folded
    into the running averages; without them the running averages are used.
    """

    channels: int
    momentum: float
    freeze_affine: bool

    @nn.compact
    def __call__(self, moments: tuple[Array, Array] | None) -> tuple[Array, Array]:
        scale = self.param("scale", nn.initializers.ones, (self.channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.channels,), jnp.float32)
        if self.freeze_affine:
            scale, bias = lax.stop_gradient((scale, bias))
        if moments is None:
            mean, var = lax.stop_gradient((running_mean.value, running_var.value))
        else:
            mean, var = moments
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        multiplier = scale * lax.rsqrt(var + BATCH_NORM_EPS)
        return multiplier, bias - mean * multiplier


class Unit3D(nn.Module):
    """Convolution, batch normalisation, ReLU: [B, T, H, W, C] -> [B, ceil(T/st), ceil(H/sh), ceil(W/sw), features]."""

    features: int
    kernel: Size3
    strides: Size3
    bn_mode: str
    bn_momentum: float
    conv_mode: Mode
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = ConvKernel((*self.kernel, x.shape[-1], self.features), name="conv3d")()
        norm = BatchNorm(self.features, self.bn_momentum, self.bn_mode == "frozen", name="batch_norm")
        x = x.astype(self.dtype)
        if self.bn_mode == "train" and self.train:
            y = conv3d(x, kernel.astype(self.dtype), self.strides, self.conv_mode)
            y = y.astype(wide(y))
            mean, mean_square = (jnp.mean(v, axis=(0, 1, 2, 3)) for v in (y, jnp.square(y)))
            multiplier, shift = norm((mean, jnp.maximum(mean_square - jnp.square(mean), 0.0)))
            y = y * multiplier + shift
        else:
            # The multiplier goes into the kernel: one pass less over the activations, forward and backward.
            multiplier, shift = norm(None)
            y = conv3d(x, (kernel * multiplier).astype(self.dtype), self.strides, self.conv_mode)
            y = y.astype(wide(y)) + shift
        return nn.relu(y).astype(self.dtype)


class Branch(nn.Module):
    """A chain of units (name -> channels), whose last digit is the kernel size; the parent of their parameter paths."""

    units: Mapping[str, int]
    make_unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name, features in self.units.items():
            x = self.make_unit(features, (int(name[-1]),) * 3, (1, 1, 1), name=name)(x)
        return x


class Mixed(nn.Module):
    """Inception block: four branches joined on channels."""

    channels: tuple[int, ...]
    make_unit: Callable[..., nn.Module]
    conv_mode: Mode

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.channels
        pooled = max_pool3d(x, (3, 3, 3), (1, 1, 1), self.conv_mode)
        branches = [
            ({"Conv3d_0a_1x1": c[0]}, x),
            ({"Conv3d_0a_1x1": c[1], "Conv3d_0b_3x3": c[2]}, x),
            ({"Conv3d_0a_1x1": c[3], "Conv3d_0b_3x3": c[4]}, x),
            ({"Conv3d_0b_1x1": c[5]}, pooled),
        ]
        outputs = [Branch(u, self.make_unit, name=f"Branch_{i}")(v) for i, (u, v) in enumerate(branches)]
        return jnp.concatenate(outputs, axis=-1)


class Linear(nn.Module):
    """1x1x1 convolution with bias, at the path `conv3d`."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(self.features, (1, 1, 1), name="conv3d")(x)


class Logits(nn.Module):
    """Kinetics head: average over windows of 2x7x7, linear, mean over what remains (kinetics-i3d i3d.py:436-460)."""

    num_logits: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if any(size < window for size, window in zip(x.shape[1:4], (2, 7, 7))):
            raise UserError(f"I3D logits: Mixed_5c is {x.shape[1:4]}, under 2x7x7; give at least 9 frames of 224x224.")
        x = nn.avg_pool(x.astype(jnp.float32), (2, 7, 7), (1, 1, 1), "VALID")
        return jnp.mean(Linear(self.num_logits, name="Conv3d_0c_1x1")(x), axis=(1, 2, 3))


class I3D(nn.Module):
    """The backbone of one stream.

    Args of the call: `x` [B, F, H, W, C] in [-1, 1] (C 3 for RGB, 2 for flow); `train` matters to batch normalisation
    in mode "train" alone, where "batch_stats" has to be mutable. Returns a dict from end point to [B, T, H', W', C'] in
    `dtype`; blocks deeper than the deepest end point are neither computed nor created. With `num_logits` > 0 also
    "Logits" [B, num_logits] float32. At 256x96x96 the three default end points are 128x12x12x480, 64x6x6x832 and
    32x3x3x1024. Raises UserError for an unknown end point.
    """

    width_multiplier: float = 1.0  # of every channel count, see `scaled_channels`
    end_points: tuple[str, ...] = ("Mixed_3c", "Mixed_4f", "Mixed_5c")
    # frozen: running statistics, no gradient to scale and bias; frozen_stats: running statistics, scale and bias train;
    # train: statistics of the (global) batch
    bn_mode: Literal["frozen", "frozen_stats", "train"] = "frozen"
    bn_momentum: float = 0.99  # decay of the running statistics
    # of `conv3d`; auto: decomposed on a CPU, as it needs no options of the compiler (see `fit_to_device`), else direct
    conv_mode: Literal["auto", "decomposed", "onednn", "direct"] = "auto"
    # recompute in the backward pass the stem, whose maps are the largest, as a whole, and every block after it
    remat: bool = False
    dtype: Any = jnp.float32  # of convolutions and activations; parameters and statistics are float32
    num_logits: int = 0  # classes of the Kinetics head

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
        unknown = [name for name in self.end_points if name not in END_POINTS]
        if unknown or not (self.end_points or self.num_logits):
            what = f"no I3D end point {', '.join(unknown)}" if unknown else "the list is empty"
            raise UserError(f"model.end_points: {what}; choose among {', '.join(END_POINTS)}.")
        automatic: Mode = "decomposed" if jax.default_backend() == "cpu" else "direct"
        mode = automatic if self.conv_mode == "auto" else self.conv_mode
        outputs: dict[str, Array] = {}
        last = "Mixed_5c" if self.num_logits else max(self.end_points, key=END_POINTS.index)
        names = END_POINTS[: END_POINTS.index(last) + 1]
        for group in (names[: len(_STEM)], *zip(names[len(_STEM) :])):
            run = functools.partial(I3D._run, names=group, mode=mode, train=train)
            x, found = (nn.remat(run) if self.remat else run)(self, x)
            outputs |= found
        if self.num_logits:
            outputs["Logits"] = Logits(self.num_logits, name="Logits")(x)
        return outputs

    @nn.nowrap
    def _run(self, x: Array, *, names: Iterable[str], mode: Mode, train: bool) -> tuple[Array, dict[str, Array]]:
        """Some blocks in a row: the last output, and those of `end_points`."""
        outputs: dict[str, Array] = {}
        unit = functools.partial(Unit3D, bn_mode=self.bn_mode, bn_momentum=self.bn_momentum, conv_mode=mode,
                                 dtype=self.dtype, train=train)  # fmt: skip
        for name in names:
            if name in _POOLS:
                x = max_pool3d(x, *_POOLS[name], mode)
            elif name in _CONVS:
                channels, kernel, strides = _CONVS[name]
                channels = scaled_channels(channels, self.width_multiplier)
                x = unit(channels, kernel, strides, name=name)(x)
            else:
                widths = tuple(scaled_channels(c, self.width_multiplier) for c in _MIXED[name])
                x = Mixed(widths, unit, mode, name=name)(x)
            outputs |= {name: x} if name in self.end_points else {}
        return x, outputs
