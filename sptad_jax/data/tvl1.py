"""TV-L1 optical flow as one XLA program, batched over pairs of frames.

For a pair (I0, I1) of grey images, minimises over the field u = (u_x, u_y), in pixels, by its convex splitting with v

    sum over pixels of |grad u_x| + |grad u_y| + |u - v|^2 / (2 theta) + lambda |I1(x + v) - I0(x)|

from coarse to fine, with I1 linearised around the field of the last warp (Zach, Pock and Bischof, DAGM 2007; Sánchez,
Meinhardt-Llopis and Facciolo, IPOL 2013). Constants, borders, interpolation and stopping are those of OpenCV's default
DualTVL1OpticalFlow (opencv_contrib 2a5154a, modules/optflow/src/tvl1flow.cpp:386-516, 1313-1410); the interpolation is
that of OpenCV 5, at exact positions (OpenCV 4 rounds them to a 32nd of a pixel). A field is a pair of arrays and a dual
variable a pair of pairs, not one array: XLA makes twice as fast a loop of that on a CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TAU, LAMBDA, THETA = 0.25, 0.15, 0.3  # step of the dual variable, weight of the data, tightness of the splitting
SCALES, SCALE_STEP, MIN_SIDE = 5, 0.8, 16  # of the pyramid; no side of a smaller picture falls below MIN_SIDE
WARPS, OUTER, INNER = 5, 10, 30  # warps of a scale, median filters of a warp, iterations after each filter
EPSILON = 0.01  # pixels: a warp is done when the root mean square of an iteration's update is not above

Field = tuple[jax.Array, ...]  # (x, y), [H, W] each
Dual = tuple[Field, ...]  # of the x and the y component


@functools.partial(jax.jit, static_argnames=("iterations", "at_once"))
def estimate_flow(before: jax.Array, after: jax.Array, *, iterations: int = 0, at_once: int = 0) -> jax.Array:
    """Flow of each pair, whatever else the batch holds.

    Args:
      before, after: [B, H, W], grey levels 0..255, uint8 or float32; sides of at least 3 pixels.
      iterations: 0 stops as OpenCV does, each pair and warp for itself, after at most OUTER * INNER iterations. A
        positive number is how many each warp gets, after one median filter: no iteration then waits for a decision.
      at_once: pairs computed side by side; pairs that stop early wait for the others. 0: one on a CPU, where waiting
        would only cost, and all of them elsewhere.

    Returns: float32 [B, H, W, 2], pixels to the right and down from a place in `before` to the same in `after`.
    """
    solve = functools.partial(_solve_pair, iterations=iterations)
    pairs = (before.astype(jnp.float32), after.astype(jnp.float32))
    at_once = at_once or (1 if jax.default_backend() == "cpu" else len(before))
    return lax.map(lambda pair: solve(*pair), pairs, batch_size=at_once if at_once > 1 else None)


def _solve_pair(before: jax.Array, after: jax.Array, iterations: int) -> jax.Array:
    """[H, W] twice -> [H, W, 2]."""
    pyramid: list[tuple[jax.Array, ...]] = [(before, after)]
    for _ in range(SCALES - 1):
        shape = tuple(round(side * SCALE_STEP) for side in pyramid[-1][0].shape)
        if min(shape) < MIN_SIDE:
            break
        # by exactly SCALE_STEP, also where the sides had to be rounded
        pyramid.append(tuple(_resize(image, shape, (1 / SCALE_STEP,) * 2) for image in pyramid[-1]))
    field: Field = (jnp.zeros_like(pyramid[-1][0]),) * 2
    for level, (first, second) in enumerate(reversed(pyramid)):
        shape = first.shape
        if level:
            steps = tuple(old / new for old, new in zip(field[0].shape, shape))
            field = tuple(_resize(u, shape, steps) / SCALE_STEP for u in field)
        field = _solve_scale(first, second, field, iterations)
    return jnp.stack(field, axis=-1)


def _solve_scale(before: jax.Array, after: jax.Array, field: Field, iterations: int) -> Field:
    """The field after WARPS warps; the dual variable lives on from one to the next."""
    images = jnp.stack([after, *_central_gradient(after)], axis=-1)
    enough = EPSILON**2 * before.size

    def warp(_: int, state: tuple[Field, Dual]) -> tuple[Field, Dual]:
        field, dual = state
        warped, grad_x, grad_y = jnp.moveaxis(_sample_cubic(images, field), -1, 0)
        constant = warped - before - grad_x * field[0] - grad_y * field[1]
        # OpenCV moves nothing where the square is below 1e-7; here the move is then below 2e-5 pixels
        inverse = 1 / jnp.maximum(grad_x**2 + grad_y**2, 1e-30)

        def iterate(field: Field, dual: Dual) -> tuple[Field, Dual, jax.Array]:
            residual = constant + (grad_x * field[0] + grad_y * field[1])
            share = jnp.clip(-residual * inverse, -LAMBDA * THETA, LAMBDA * THETA)
            new = tuple(u + share * grad + THETA * _divergence(p) for u, grad, p in zip(field, (grad_x, grad_y), dual))
            change = jnp.sum((new[0] - field[0]) ** 2 + (new[1] - field[1]) ** 2)
            return new, tuple(_dual_step(u, p) for u, p in zip(new, dual)), change

        if iterations:
            return lax.fori_loop(0, iterations, lambda _, state: iterate(*state)[:2], (_filter(field), dual))
        return _iterate_until(iterate, field, dual, enough)

    zeros = jnp.zeros_like(before)
    return lax.fori_loop(0, WARPS, warp, (field, ((zeros, zeros), (zeros, zeros))))[0]


def _iterate_until(iterate, field: Field, dual: Dual, enough: float) -> tuple[Field, Dual]:
    """Iterates, with a median filter before every INNER, until the squared change of the whole field is not above."""

    def filter_and_iterate(state):
        count, field, dual, change = state
        _, *state = lax.while_loop(
            lambda state: (state[0] < INNER) & (state[-1] > enough),
            lambda state: (state[0] + 1, *iterate(*state[1:3])),
            (0, _filter(field), dual, change),
        )
        return count + 1, *state

    start = (0, field, dual, jnp.full((), jnp.inf, field[0].dtype))
    return lax.while_loop(lambda state: (state[0] < OUTER) & (state[-1] > enough), filter_and_iterate, start)[1:3]


def _dual_step(u: jax.Array, p: Field) -> Field:
    """One ascent of a component's dual variable, brought back towards the unit disc."""
    x = jnp.diff(u, axis=1, append=u[:, -1:])
    y = jnp.diff(u, axis=0, append=u[-1:])
    shrink = 1 / (1 + TAU / THETA * jnp.sqrt(x * x + y * y))
    return (p[0] + TAU / THETA * x) * shrink, (p[1] + TAU / THETA * y) * shrink


def _divergence(p: Field) -> jax.Array:
    """By backward differences: minus the adjoint of the forward differences of `_dual_step`."""
    return jnp.diff(p[0], axis=1, prepend=0) + jnp.diff(p[1], axis=0, prepend=0)


def _central_gradient(image: jax.Array) -> Field:
    """Half the difference of the two neighbours; at the border, of the pixel itself and its one neighbour."""
    padded = jnp.pad(image, 1, mode="edge")
    return 0.5 * (padded[1:-1, 2:] - padded[1:-1, :-2]), 0.5 * (padded[2:, 1:-1] - padded[:-2, 1:-1])


def _sample_cubic(images: jax.Array, field: Field) -> jax.Array:
    """Reads [H, W, C] at every pixel plus its displacement: bicubic with a = -0.75, 0 outside."""
    height, width, channels = images.shape
    margin = 5  # a sample whose 4 x 4 pixels all lie outside reads zeros from here, however far away it is
    x = jnp.clip(jnp.arange(width) + field[0], -3, width + 2)
    y = jnp.clip(jnp.arange(height)[:, None] + field[1], -3, height + 2)
    left, top = jnp.floor(x), jnp.floor(y)
    corners = jnp.stack([top, left], axis=-1).astype(jnp.int32) - 1 + margin
    patches = lax.gather(
        jnp.pad(images, ((margin, margin), (margin, margin), (0, 0))), corners,
        lax.GatherDimensionNumbers(offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)),
        slice_sizes=(4, 4, channels), mode="promise_in_bounds")  # [H, W, 4, 4, C]
    columns, rows = _cubic_weights(x - left), _cubic_weights(y - top)
    lines = [sum(columns[j][..., None] * patches[:, :, i, j] for j in range(4)) for i in range(4)]
    return jnp.asarray(sum(weight[..., None] * line for weight, line in zip(rows, lines)))


def _cubic_weights(t: jax.Array) -> list[jax.Array]:
    """Of the pixels at -1, 0, 1 and 2, for a position t in [0, 1)."""
    a = -0.75

    def near(d: jax.Array) -> jax.Array:  # distance below 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: jax.Array) -> jax.Array:  # between 1 and 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def _resize(image: jax.Array, shape: tuple[int, ...], steps: tuple[float, ...]) -> jax.Array:
    """Bilinear, with aligned centres: a pixel of the result is `steps` pixels of the image wide; no smoothing."""
    rows, columns = (_linear_weights(*sides) for sides in zip(image.shape, shape, steps))
    return jnp.einsum("ih,hw,jw->ij", rows, image, columns, precision=lax.Precision.HIGHEST)


def _linear_weights(size: int, new_size: int, step: float) -> np.ndarray:
    """[new_size, size], the border repeated."""
    position = np.clip((np.arange(new_size) + 0.5) * step - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size))).astype(np.float32)


def _filter(field: Field) -> Field:
    return tuple(_median(u) for u in field)


def _median(image: jax.Array) -> jax.Array:
    """Of 5 x 5 pixels, the border repeated.

    With the columns and then the rows of a window sorted, 12 pixels cannot be the median: 6 have at least 13 others not
    below them, 6 at least 13 not above. The median of all is that of the remaining 13.
    """
    height, width = image.shape
    padded = jnp.pad(image, 2, mode="edge")
    columns = _sort([padded[i : i + height] for i in range(5)])  # shared by five windows each
    rows = [_sort([column[:, j : j + width] for j in range(5)]) for column in columns]
    left = [rows[i][j] for i in range(5) for j in range(5) if (i + 1) * (j + 1) <= 13 and (5 - i) * (5 - j) <= 13]
    kept, left = left[:8], left[8:]  # of more than half, neither the least nor the greatest is the median
    while len(kept) > 1:
        upwards, downwards = range(1, len(kept)), range(len(kept) - 2, 0, -1)
        _exchange(kept, [(k - 1, k) for k in [*upwards, *downwards]])  # the greatest to the end, the least to the start
        kept, left = kept[1:-1] + left[:1], left[1:]
    return kept[0]


def _sort(five: list[jax.Array]) -> list[jax.Array]:
    _exchange(five, [(0, 1), (3, 4), (2, 4), (2, 3), (1, 4), (0, 3), (0, 2), (1, 3), (1, 2)])
    return five


def _exchange(arrays: list[jax.Array], places: list[tuple[int, int]]) -> None:
    """Puts the smaller elements of each two arrays into the first of them, in turn."""
    for i, j in places:
        less = arrays[i] < arrays[j]  # half the time of jnp.minimum and maximum, which look for NaN
        arrays[i], arrays[j] = jnp.where(less, arrays[i], arrays[j]), jnp.where(less, arrays[j], arrays[i])
