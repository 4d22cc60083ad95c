"""The gradient of a convolution by its kernel on a CPU: XLA's own against one matrix product, for the layers of I3D.

    python -m benchmarks.kernel_gradient [--width 1] [--frames 64] [--size 96] [--batch 1] [--quick] [--output FILE]

Rows are the layers as sptad_jax/models/conv3d.py folds them: taps in time are channels of a 2-D convolution. It chooses
by output channels, `MIN_FEATURES`.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_ratio, report, time_in_turns
from sptad_jax.models import conv3d
from sptad_jax.models.i3d import scaled_channels

# layer -> (halvings of time, of space, before it; input channels, output channels, kernel, stride); i3d.py `_MIXED`
LAYERS = {"Conv3d_1a_7x7": (0, 0, 3, 64, 7, 2), "Conv3d_2c_3x3": (1, 2, 64, 192, 3, 1),
          "Mixed_3b 1": (1, 3, 96, 128, 3, 1), "Mixed_3c 1": (1, 3, 128, 192, 3, 1), "Mixed_3c 2": (1, 3, 32, 96, 3, 1),
          "Mixed_4e 1": (2, 4, 144, 288, 3, 1), "Mixed_5c 1": (3, 5, 192, 384, 3, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of channels")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    rows = []
    for layer, (in_time, in_space, channels, features, size, stride) in LAYERS.items():
        taken = channels if layer.startswith("Conv3d_1a") else scaled_channels(channels, args.width)
        side = -(-args.size // 2**in_space)
        images = args.batch * args.frames // 2**in_time // stride
        shape = (size, size, size * taken, scaled_channels(features, args.width))
        sides = make_sides((images, side, side, size * taken), shape, stride)
        seconds = time_in_turns(sides, 3 if args.quick else args.repeats)
        rows.append({"layer": layer, "images": images, "pixels": side, "kernel": "x".join(map(str, shape)),
                     **{f"{name} ms": 1e3 * float(np.median(times)) for name, times in seconds.items()},
                     "XLA to product": median_ratio(seconds["XLA"], seconds["product"])})  # fmt: skip
    report("Gradient by the kernel", rows, args.output, jax=jax.__version__, device=jax.devices()[0].device_kind)


def make_sides(
    shape: tuple[int, int, int, int], kernel_shape: tuple[int, int, int, int], stride: int
) -> dict[str, Callable[[], Any]]:
    """Both ways, compiled and compared, on a random input of `shape` [N, H, W, C]."""
    rng = np.random.default_rng(0)
    strides = (stride, stride)
    places = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), kernel_shape[3])
    x, gradient = (jax.device_put(rng.standard_normal(s, np.float32)) for s in (shape, places))
    kernel = jax.device_put(np.zeros(kernel_shape, np.float32))
    plain = functools.partial(conv3d._plain_conv2d, strides=strides)
    sides = {"XLA": jax.jit(lambda x, gradient: jax.vjp(functools.partial(plain, x), kernel)[1](gradient)[0]),
             "product": jax.jit(lambda x, gradient: conv3d._kernel_gradient(x, gradient, kernel_shape, strides))}
    found = [np.asarray(function(x, gradient)) for function in sides.values()]
    assert np.linalg.norm(found[0] - found[1]) < 1e-4 * np.linalg.norm(found[0]), kernel_shape
    return {name: functools.partial(lambda f: jax.block_until_ready(f(x, gradient)), f) for name, f in sides.items()}


if __name__ == "__main__":
    main()
