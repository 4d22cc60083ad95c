"""3-D convolution with SAME padding, as XLA has it and in forms that a CPU is fast at."""

import dataclasses
import functools
import pathlib
import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sptad_jax.config import ModelConfig
from sptad_jax.precision import wide

Array = jax.Array
Size3 = tuple[int, int, int]
Mode = Literal["direct", "decomposed", "onednn"]

# Output channels from which a CPU is faster at a matrix product than at XLA's gradient by the kernel (1.5 to 4.5 times
# in most of I3D, benchmarks/kernel_gradient.py); with fewer the product is too thin.
MIN_FEATURES = 64
GROUP_SIZE = 1 << 22  # numbers; larger matrices only need more memory
TINY_MAP = 4  # pixels; on maps this small a 2-D convolution costs the CPU two to five times a matrix product


def fit_to_device(config: ModelConfig) -> tuple[ModelConfig, dict[str, bool | str] | None]:
    """The config with a `conv_mode` for "auto" that is fastest on the default backend, and what `jax.jit` needs for it.

    On a CPU, XLA orders operations so that all start that could run side by side, from which two cores gain nothing:
    the order that needs least memory takes 0.6 to 0.75 of the buffers in jax 0.10. Convolutions that are left to XLA
    are kept from YNNPACK, which needs up to seven times as long for few channels; but not what oneDNN leaves,
    gradients by the kernel, where there is AVX-512, with which it is the faster (benchmarks/RESULTS.md).

    JAX cannot keep programs that call oneDNN on disk. Where it is to keep them (jax_compilation_cache_dir), float32
    does without oneDNN; bfloat16, which would be ten times slower, does not, if the CPU has instructions for it. If
    not, some of oneDNN's products in bfloat16 take a hundred times as long as XLA's (with AVX-512).
    """
    mode = config.conv_mode
    if mode == "auto":
        kept = bool(jax.config.jax_compilation_cache_dir) and config.compute_dtype == "float32"  # type: ignore[attr-defined]
        on_cpu = jax.default_backend() == "cpu"
        mode = ("onednn" if has_onednn(config.compute_dtype) and not kept else "decomposed") if on_cpu else "direct"
    options: dict[str, bool | str] = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    onednn = mode == "onednn" or (config.compute_dtype == "bfloat16" and has_bfloat16())
    if onednn:
        options["xla_cpu_experimental_onednn_custom_call"] = True
    if mode != "direct" and not (onednn and has_avx512()):
        options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    return dataclasses.replace(config, conv_mode=mode), options if jax.default_backend() == "cpu" else None


@functools.cache
def has_onednn(dtype: str) -> bool:
    """Whether XLA can hand 3-D convolutions in `dtype` to oneDNN (jaxlib from 0.11 on, x86 CPUs), found by trying, and
    the CPU has instructions for `dtype`."""
    if jax.default_backend() != "cpu" or (dtype == "bfloat16" and not has_bfloat16()):
        return False
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, 4, 8, 8, 16), (3, 3, 3, 16, 16))]
    lowered = jax.jit(functools.partial(_plain_conv3d, strides=(1, 1, 1))).lower(*shapes)
    with warnings.catch_warnings():  # that JAX, where it keeps programs, cannot keep this one
        warnings.simplefilter("ignore")
        program = lowered.compile(compiler_options={"xla_cpu_experimental_onednn_custom_call": True})
    return "__onednn" in (program.as_text() or "")


@functools.cache
def has_avx512() -> bool:
    """Whether this machine's CPU has it, as NumPy found out."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return any(name.startswith(("AVX512", "X86_V4")) for name in [*simd.get("baseline", []), *simd.get("found", [])])


@functools.cache
def has_bfloat16() -> bool:
    """Whether this machine's x86 CPU has instructions for bfloat16, as Linux says; elsewhere no."""
    path = pathlib.Path("/proc/cpuinfo")
    return path.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(path.read_text().split())


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME rule for one axis: (leading, trailing); an odd sample goes to the trailing side."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def conv3d(x: Array, kernel: Array, strides: Size3, mode: Mode) -> Array:
    """3-D convolution with SAME padding: [B, T, H, W, C], [kt, kh, kw, C, O] -> [B, ceil(T/st), ..., ceil(W/sw), O].

    "direct" is XLA's 3-D convolution. The others give the same numbers in forms that a CPU is fast at: a matrix product
    (1x1x1, and maps of at most TINY_MAP pixels, whose taps become columns), else "decomposed" one 2-D convolution whose
    input channels hold the temporal taps, as XLA's own code is slow in 3-D, and "onednn" the 3-D convolution, which
    oneDNN is fast at, with gradients in forms that it is fast at; it needs the options of `fit_to_device`.
    """
    if mode == "direct":
        return _plain_conv3d(x, kernel, strides)
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1):
        return _product(x, kernel[0, 0, 0])
    if x.shape[2] * x.shape[3] <= TINY_MAP:
        return _conv_as_product(x, kernel, strides)
    return _conv_by_onednn(x, kernel, strides) if mode == "onednn" else _conv_as_2d(x, kernel, strides)


def taps(x: Array, axis: int, window: int, stride: int, fill: float) -> list[Array]:
    """The `window` shifted, strided views of `x` along `axis` after SAME padding with `fill`."""
    length = -(-x.shape[axis] // stride)
    padding = [(0, 0)] * x.ndim
    padding[axis] = same_padding(x.shape[axis], window, stride)
    if any(padding[axis]):
        x = jnp.pad(x, padding, constant_values=fill)
    return [lax.slice_in_dim(x, tap, tap + (length - 1) * stride + 1, stride, axis) for tap in range(window)]


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return jnp.einsum("bthwc,co->bthwo", x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = lax.optimization_barrier(gradient)  # or XLA computes it once more for its transpose, row by row
    return _together(jnp.einsum("bthwo,co->bthwc", gradient, kernel), _sum_of_products(x, gradient))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def _together(by_x: Array, by_kernel: Array) -> tuple[Array, Array]:
    """Has XLA (jax 0.12; 0.10 does not heed it) compute both before what follows: it leaves gradients by kernels to the
    end, and keeps all that they need, even what was recomputed to save memory."""
    return lax.optimization_barrier((by_x, by_kernel))  # type: ignore[no-any-return]


def _sum_of_products(x: Array, gradient: Array) -> Array:
    """[..., C], [..., O] -> [C, O]. XLA transposes the operand that comes first; this has fewer channels, mostly."""
    return jnp.einsum("no,nc->oc", gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])).T


def _plain_conv3d(x: Array, kernel: Array, strides: Size3) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_by_onednn(x: Array, kernel: Array, strides: Size3) -> Array:
    return _plain_conv3d(x, kernel, strides)


def _conv_by_onednn_forward(x: Array, kernel: Array, strides: Size3) -> tuple[Array, tuple[Array, Array]]:
    return _plain_conv3d(x, kernel, strides), (x, kernel)


def _conv_by_onednn_backward(strides: Size3, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = lax.optimization_barrier(gradient)  # as in `_product_backward`
    if strides == (1, 1, 1) and all(size % 2 for size in kernel.shape[:3]):  # only then is SAME its own mirror image
        by_x = _plain_conv3d(gradient, jnp.swapaxes(kernel[::-1, ::-1, ::-1], 3, 4), strides)
    else:  # XLA's own
        (by_x,) = jax.vjp(lambda x: _plain_conv3d(x, kernel, strides), x)[1](gradient)
    pictures = _fold_time(x, kernel.shape[0], strides[0])
    folded = _fold_kernel(kernel)
    gradient = gradient.reshape(-1, *gradient.shape[2:])
    if kernel.shape[4] >= MIN_FEATURES:
        by_kernel = _kernel_gradient(pictures, gradient, folded.shape, strides[1:])
    else:
        (by_kernel,) = jax.vjp(lambda kernel: _plain_conv2d(pictures, kernel, strides[1:]), folded)[1](gradient)
    by_kernel = by_kernel.reshape(*kernel.shape[1:3], kernel.shape[0], *kernel.shape[3:])
    return _together(by_x, jnp.transpose(by_kernel, (2, 0, 1, 3, 4)))


_conv_by_onednn.defvjp(_conv_by_onednn_forward, _conv_by_onednn_backward)


def _fold_time(x: Array, time: int, stride: int) -> Array:
    """[B, T, H, W, C] -> [B ceil(T / stride), H, W, time C], pictures with the temporal taps beside one another."""
    x = jnp.concatenate(taps(x, 1, time, stride, 0.0), axis=-1)
    return x.reshape(-1, *x.shape[2:])


def _fold_kernel(kernel: Array) -> Array:
    """[kt, kh, kw, C, O] -> [kh, kw, kt C, O], for pictures of `_fold_time`."""
    time, height, width, channels, features = kernel.shape
    return jnp.transpose(kernel, (1, 2, 0, 3, 4)).reshape(height, width, time * channels, features)


@functools.partial(jax.checkpoint, static_argnums=(2,))  # keeps x, and not its taps beside one another
def _conv_as_2d(x: Array, kernel: Array, strides: Size3) -> Array:
    y = _conv2d(_fold_time(x, kernel.shape[0], strides[0]), _fold_kernel(kernel), strides[1:])
    return y.reshape(x.shape[0], -(-x.shape[1] // strides[0]), *y.shape[1:])


def _plain_conv2d(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """2-D convolution with SAME padding, whose gradient by the input is one of the same kind where that is possible.

    JAX's own is a convolution with a reversed window, which XLA does not hand to oneDNN: ten times slower in bfloat16.
    """
    return _plain_conv2d(x, kernel, strides)


def _conv2d_forward(x: Array, kernel: Array, strides: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return _plain_conv2d(x, kernel, strides), (x, kernel)


def _conv2d_backward(strides: tuple[int, int], saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    by_x, by_kernel = jax.vjp(functools.partial(_plain_conv2d, strides=strides), x, kernel)[1](gradient)
    if strides == (1, 1) and all(size % 2 for size in kernel.shape[:2]):  # only then is SAME its own mirror image
        by_x = _plain_conv2d(gradient, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), strides)
    if kernel.shape[3] >= MIN_FEATURES:
        by_kernel = _kernel_gradient(x, gradient, kernel.shape, strides)
    return by_x, by_kernel


def _kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...], strides: tuple[int, int]) -> Array:
    """The sum over groups of pictures whose matrices (`_kernel_product`) have at most about GROUP_SIZE numbers each."""
    size = max(x[0].size // strides[0] * shape[0], gradient[0].size * -(-shape[1] // strides[1]))
    count = min(-(-len(x) * size // GROUP_SIZE), len(x))
    total = jnp.zeros(shape, wide(x))
    for group in zip(jnp.array_split(x, count), jnp.array_split(gradient, count)):
        # The barrier, as XLA joins the first product and all sums to one call of oneDNN, which aborts beyond 32.
        total = lax.optimization_barrier(total + _kernel_product(*group, shape, strides).astype(total.dtype))
    return total.astype(x.dtype)


def _kernel_product(x: Array, gradient: Array, shape: tuple[int, ...], strides: tuple[int, int]) -> Array:
    """One matrix product over all places: what the taps of a column saw, by the gradient shifted along the rows.

    Shifts along one axis each keep both matrices small. Along the rows, `strides[1]` neighbours of `x` are channels of
    one place, so that the gradient can be shifted by whole places.
    """
    (height, width, channels, features), (_, stride) = shape, strides
    shifts = -(-width // stride)
    places = gradient.shape[2] + shifts - 1
    lead = same_padding(x.shape[2], width, stride)[0]
    x = jnp.pad(x, ((0, 0), (0, 0), (lead, places * stride - x.shape[2] - lead), (0, 0)))
    x = x.reshape(*x.shape[:2], places, stride * channels)
    seen = jnp.concatenate(taps(x, 1, height, strides[0], 0.0), axis=-1)
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (shifts - 1, shifts - 1), (0, 0)))
    moved = [gradient[:, :, shifts - 1 - shift:][:, :, :places] for shift in range(shifts)]
    seen, became = lax.optimization_barrier((seen, jnp.concatenate(moved, axis=-1)))
    product = _sum_of_products(seen, became).reshape(height, stride, channels, shifts, features)
    return jnp.transpose(product, (0, 3, 1, 2, 4)).reshape(height, shifts * stride, channels, features)[:, :width]


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _conv_as_product(x: Array, kernel: Array, strides: Size3) -> Array:
    for axis in (1, 2, 3):
        x = jnp.concatenate(taps(x, axis, kernel.shape[axis - 1], strides[axis - 1], 0.0), axis=-1)
    # The taps of the axis taken last vary slowest in the columns.
    return jnp.einsum("bthwc,co->bthwo", x, jnp.transpose(kernel, (2, 1, 0, 3, 4)).reshape(-1, kernel.shape[-1]))
