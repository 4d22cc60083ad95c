"""TV-L1 flow in JAX against OpenCV's: pairs a second, and how far the fields and the stored bytes differ.

    python -m benchmarks.optical_flow [--video clip.mp4 ...] [--pairs 64] [--quick] [--output flow.json]

The pairs are neighbours at 10 fps and 112 x 112, spread evenly over the videos, or textures that drift, turn and swell
where none is given. OpenCV has one thread; CPU time, of all threads, shows what others' load hides. Without OpenCV's
contributed modules, fields are compared to those of the JAX program that stops as OpenCV does, and only JAX is timed.
Warp error: mean difference in grey levels between a frame and the next one, read bilinearly where the field points.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_ratio, report, time_in_turns
from sptad_jax.data import tvl1

FPS, SIZE = 10.0, 112  # paper 4.1
OPENCV, STOP, FIXED = "OpenCV", "JAX, stopping as OpenCV", "JAX, 30 iterations a warp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", nargs="*", default=[], help="files to take pairs from (needs extra [data])")
    parser.add_argument("--pairs", type=int, default=64, help="pairs in all (default 64)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="8 pairs, one repeat")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    count, repeats = (8, 1) if args.quick else (args.pairs, args.repeats)
    before, after = read_pairs(args.video, count) if args.video else draw_pairs(count)
    device = jax.device_put((before, after))
    sides: dict[str, Any] = {
        STOP: lambda: np.asarray(tvl1.estimate_flow(*device)),
        FIXED: lambda: np.asarray(tvl1.estimate_flow(*device, iterations=tvl1.INNER)),
    }
    solver = make_opencv()
    if solver:
        sides = {OPENCV: lambda: np.stack([solver.calc(a, b, None) for a, b in zip(before, after)]), **sides}
    else:
        print("OpenCV's contributed modules are not installed: JAX is compared to itself.")
    fields = {name: work() for name, work in sides.items()}
    seconds = time_in_turns(sides, repeats)
    first = next(iter(sides))
    rows = [{
        "what": name,
        "pairs a second": float(len(before) / np.median(seconds[name])),
        "CPU ms a pair": cpu_seconds(sides[name]) / len(before) * 1e3,
        f"speed to {first}": median_ratio(seconds[first], seconds[name]),
        "end-point difference": float(np.linalg.norm(field - fields[first], axis=-1).mean()),
        "of the worst pair": float(np.linalg.norm(field - fields[first], axis=-1).mean((1, 2)).max()),
        "warp error": warp_error(before, after, field),
        "bytes within 1": agreeing_bytes(field, fields[first]),
    } for name, field in fields.items()]
    report(f"TV-L1 flow of {len(before)} pairs of {SIZE} x {SIZE}", rows, args.output, jax=jax.__version__,
           device=jax.devices()[0].device_kind, videos=len(args.video),
           warp_error_without_flow=warp_error(before, after, np.zeros_like(fields[first])))


def make_opencv() -> Any:
    """OpenCV's solver with its defaults, or None."""
    try:
        import cv2
    except ImportError:
        return None
    library: Any = cv2
    library.setNumThreads(1)
    return library.optflow.DualTVL1OpticalFlow_create() if hasattr(library, "optflow") else None


def read_pairs(paths: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey uint8 [N, SIZE, SIZE] twice, N at most `count`, as many of each video."""
    import cv2

    from sptad_jax.data.video import FrameReader

    before, after = [], []
    for path in paths:
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in FrameReader(path, FPS, SIZE)]
        chosen = np.unique(np.linspace(0, len(grey) - 2, max(1, count // len(paths))).astype(int))
        before += [grey[i] for i in chosen]
        after += [grey[i + 1] for i in chosen]
    return np.stack(before), np.stack(after)


def draw_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of waves, each pair moved by an affine map of its own: grey uint8 [N, SIZE, SIZE] twice."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE) - SIZE / 2] * 2, indexing="xy"))
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for _ in range(count):
        waves, phase = rng.normal(0, 0.25, (60, 2)), rng.uniform(0, 2 * np.pi, (60, 1, 1))
        back = np.eye(2) + rng.normal(0, 0.02, (2, 2))  # where the content of the second frame was in the first
        origin = np.einsum("ij,jyx->iyx", back, grid) + rng.uniform(-3, 3, (2, 1, 1))
        for pictures, places in ((before, grid), (after, origin)):
            values = np.sin(np.einsum("ki,iyx->kyx", waves, places) + phase).sum(0)
            pictures.append(np.clip(128 + 12 * values, 0, 255).astype(np.uint8))
    return np.stack(before), np.stack(after)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def warp_error(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> float:
    """Mean absolute difference in grey levels; beyond the border, the border is repeated."""
    count, height, width = before.shape
    x = np.clip(np.arange(width) + flow[..., 0], 0, width - 1)
    y = np.clip(np.arange(height)[:, None] + flow[..., 1], 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    at = np.arange(count)[:, None, None]
    rows = [after[at, top + i, left] * (1 - x + left) + after[at, top + i, left + 1] * (x - left) for i in (0, 1)]
    return float(np.abs(rows[0] * (1 - y + top) + rows[1] * (y - top) - before).mean())


def agreeing_bytes(flow: np.ndarray, other: np.ndarray, bound: float = 20.0) -> float:
    """Share of stored bytes that differ by at most one level."""
    levels = [np.rint((np.clip(field, -bound, bound) + bound) * (255 / (2 * bound))) for field in (flow, other)]
    return float((np.abs(levels[0] - levels[1]) <= 1).mean())


if __name__ == "__main__":
    main()
