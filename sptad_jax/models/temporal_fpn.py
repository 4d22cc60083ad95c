"""Temporal feature pyramid network (paper 3.1.2): four sequences of D channels, from the fine to the coarse."""

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sptad_jax.config import ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.precision import wide

Array = jax.Array
NORM_EPSILON = 1e-5  # of every layer and group norm after the backbone, as in the PyTorch ancestors


class TemporalFPN(nn.Module):
    """Backbone end points [B, T_l, H_l, W_l, C_l], finest first -> pyramid levels [B, T_l, D], finest first.

    Mean over space, lateral convolution, top-down sum, output convolution, and a stride-2 max pool for the extra level:
    the shape of detectron2's FPN (fpn.py:61-79, 137-140, 173-185) in one dimension. The rows of Table 5:

    * inter: all end points, and the extra level: T = F/2, F/4, F/8, F/16 for the three of the paper.
    * single: the last end point alone, one level: F/8.
    * high: the last end point, twice more halved by 3-tap convolutions of stride 2, and the extra level: F/8 .. F/64.

    `fpn_spatial="conv"` lets the lateral convolution span the whole H x W grid (AFSD BDNet.py:120-159); its parameters
    then belong to one crop size.

    Raises UserError for "inter" and end points that do not halve the time steps from one to the next: the top-down sum
    would add features of other moments.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, features: Sequence[Array]) -> list[Array]:
        config = self.config
        used = features if config.pyramid == "inter" else features[-1:]
        if any(coarse.shape[1] != -(-fine.shape[1] // 2) for fine, coarse in itertools.pairwise(used)):
            raise UserError(f"model.end_points {', '.join(config.end_points)}: each must have half the time steps of "
                            f"the one before, they have {', '.join(str(x.shape[1]) for x in used)}; take one of each "
                            "stride, finest first, as Mixed_3c, Mixed_4f, Mixed_5c.")
        laterals = [self._convolve(self._flatten_space(x), config.fpn_lateral_kernel, f"lateral_{index}")
                    for index, x in enumerate(used)]
        if config.pyramid == "high":
            for index in range(2):
                laterals.append(self._convolve(laterals[-1], 3, f"downsample_{index}", stride=2))
        merged = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + upsample(merged[0], lateral.shape[1], config.fpn_interpolation))
        levels = merged
        if config.fpn_output_conv:
            levels = [self._convolve(x, 3, f"output_{index}") for index, x in enumerate(merged)]
        if config.pyramid != "single":
            levels = [*levels, max_pool(levels[-1], config.fpn_pool_kernel)]
        return levels

    def _flatten_space(self, x: Array) -> Array:
        """[B, T, H, W, C] -> [B, T, C] by the mean, or [B, T, H*W*C] for a convolution over the whole grid."""
        if self.config.fpn_spatial == "mean":
            return x.mean(axis=(2, 3), dtype=wide(x)).astype(self.dtype)
        return x.reshape(*x.shape[:2], -1)

    def _convolve(self, x: Array, kernel: int, name: str, stride: int = 1) -> Array:
        x = nn.Conv(
            self.config.hidden_dim, (kernel,), strides=(stride,), padding=kernel // 2, dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "uniform"), name=name,
        )(x)
        if self.config.fpn_norm == "group":  # 32 groups, or the most that divide a small D
            groups = math.gcd(32, self.config.hidden_dim)
            return nn.GroupNorm(groups, epsilon=NORM_EPSILON, dtype=self.dtype, name=f"{name}_norm")(x)
        if self.config.fpn_norm == "layer":
            return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name=f"{name}_norm")(x)
        return x


def upsample(x: Array, num_steps: int, method: str) -> Array:
    """Doubles the time axis and cuts it to `num_steps`. [B, T, D] -> [B, num_steps, D].

    "nearest" repeats each step; "linear" interpolates between centres of cells. An odd `num_steps` drops the last
    sample, which keeps fine step i inside coarse step i // 2.
    """
    if method == "nearest":
        doubled = jnp.repeat(x, 2, axis=1)
    else:
        doubled = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], x.shape[2]), "linear")
    return doubled[:, :num_steps]


def max_pool(x: Array, kernel: int) -> Array:
    """Max pool of stride 2 over time, the window of 3 centred. [B, T, D] -> [B, ceil(T / 2), D].

    A maximum of shifted slices: on CPU its gradient is an order of magnitude cheaper than `reduce_window`'s.
    """
    num_steps = -(-x.shape[1] // 2)
    before = (kernel - 1) // 2
    after = max(0, 2 * (num_steps - 1) + kernel - before - x.shape[1])
    x = jnp.pad(x, ((0, 0), (before, after), (0, 0)), constant_values=-jnp.inf)
    pooled = x[:, 0 : 2 * num_steps - 1 : 2]
    for tap in range(1, kernel):
        pooled = jnp.maximum(pooled, x[:, tap : tap + 2 * num_steps - 1 : 2])
    return pooled
