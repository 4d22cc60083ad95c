"""3-D max pooling with SAME padding, as XLA has it and in a form that a CPU is fast at."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sptad_jax.models.conv3d import Mode, Size3, same_padding, taps
from sptad_jax.precision import wide

Array = jax.Array


def max_pool3d(x: Array, window: Size3, strides: Size3, mode: Mode) -> Array:
    """Max pooling of [B, T, H, W, C] with SAME padding (padded samples never win).

    "direct" is XLA's `reduce_window`, whose gradient is an order of magnitude slower on CPU; the others take the
    maximum axis by axis over shifted slices. Where samples tie, the first in time, height and width has the gradient.
    """
    with jax.named_scope("max_pool"):
        return nn.max_pool(x, window, strides, "SAME") if mode == "direct" else _max_by_axis(x, window, strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_by_axis(x: Array, window: Size3, strides: Size3) -> Array:
    return _running_maxima(x, window, strides)[-1].astype(x.dtype)


def _running_maxima(x: Array, window: Size3, strides: Size3) -> list[Array]:
    """`x` and its maxima along the width, then the height, then the time. XLA's CPU code for a bfloat16 maximum is four
    times slower, hence in float32."""
    maxima = [x.astype(wide(x))]
    for axis in (3, 2, 1):
        samples = taps(maxima[-1], axis, window[axis - 1], strides[axis - 1], -jnp.inf)
        maxima.append(functools.reduce(jnp.maximum, samples))
    return maxima


def _max_by_axis_backward(window: Size3, strides: Size3, x: Array, gradient: Array) -> tuple[Array]:
    """By `x` alone: its maxima cost less than to keep them. The barriers have XLA compute each array once."""
    maxima = lax.optimization_barrier(_running_maxima(x, window, strides)[:-1])
    gradient = gradient.astype(wide(x))
    for axis, seen in zip((1, 2, 3), reversed(maxima)):
        gradient = lax.optimization_barrier(gradient)
        gradient = _to_first_maximum(seen, gradient, axis, window[axis - 1], strides[axis - 1])
    return (gradient.astype(x.dtype),)


def _to_first_maximum(x: Array, gradient: Array, axis: int, window: int, stride: int) -> Array:
    """The gradient by `x` of its maxima along one axis: each goes to the first sample that no later one exceeds."""
    samples = taps(x, axis, window, stride, -jnp.inf)
    lead = same_padding(x.shape[axis], window, stride)[0]
    by_x, unclaimed = jnp.zeros_like(x), jnp.ones(gradient.shape, bool)
    for tap, sample in enumerate(samples):
        wins = functools.reduce(jnp.logical_and, (sample >= later for later in samples[tap + 1 :]), unclaimed)
        unclaimed &= ~wins
        first = tap - lead
        last = first + (gradient.shape[axis] - 1) * stride
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (first, x.shape[axis] - 1 - last, stride - 1)  # negative ones cut what fell on padding
        by_x += lax.pad(jnp.where(wins, gradient, 0.0), jnp.zeros((), gradient.dtype), padding)
    return by_x


_max_by_axis.defvjp(lambda x, window, strides: (_max_by_axis(x, window, strides), x), _max_by_axis_backward)
