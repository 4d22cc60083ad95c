"""Optical flow between neighbouring frames, stored as bytes."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import cv2
import numpy as np

from sptad_jax.errors import UserError

FlowMethod = Literal["tvl1", "tvl1_jax", "dis"]
PAIRS = 64  # that tvl1_jax solves at once: one shape, compiled once, for videos of any length

cv2.setNumThreads(1)  # videos are handled by several processes; threads inside each would only fight for the cores


def compute_flow(
    frames: np.ndarray, method: FlowMethod = "tvl1", bound: float = 20.0, size: int = 0
) -> np.ndarray:
    """Flow from each frame to the next, on grey images, with x (to the right) before y (down).

    The last flow frame is repeated, so that there are as many as frames; a video of one frame has no motion. That,
    the channel order and the bound are AFSD's (AFSD/common/gen_denseflow_npy.py:88-105).

    Args:
      frames: uint8 RGB [T, H, W, 3], sides of at least 16 pixels.
      method: "tvl1", the paper's, by OpenCV; "tvl1_jax", the same by `sptad_jax.data.tvl1`, faster, equal to 0.02
        pixels or so; or "dis", a hundred times faster than OpenCV's TV-L1 and a little less exact.
      bound: pixels per frame that map to the ends of the byte range; see `quantise_flow`.
      size: where positive, the field is averaged down to size x size, and measured in pixels of that size.

    Returns: uint8 [T, H, W, 2], or [T, size, size, 2].

    Raises UserError where OpenCV lacks the method.
    """
    height, width = frames.shape[1:3]
    out = (size or height, size or width)
    scale = np.array([out[1] / width, out[0] / height], np.float32)
    flow = np.zeros((len(frames), *out, 2), np.float32)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    for i, field in enumerate(_solve(grey, method)):
        if size:
            field = cv2.resize(field, (size, size), interpolation=cv2.INTER_AREA) * scale
        flow[i] = field
    if len(frames) > 1:
        flow[-1] = flow[-2]
    return quantise_flow(flow, bound)


def quantise_flow(flow: np.ndarray, bound: float = 20.0) -> np.ndarray:
    """Maps [-bound, bound] pixels to 0..255, rounded to the nearest (ties to even), clipped beyond.

    denseflow's convention. Rest lies between two bytes, at 127.5, and becomes 128, which a network sees as 0.004.
    """
    scaled = (np.clip(flow, -bound, bound) + bound) * (255.0 / (2.0 * bound))
    return np.rint(scaled).astype(np.uint8)


def _solve(grey: np.ndarray, method: FlowMethod) -> Iterator[np.ndarray]:
    """Fields [H, W, 2] of the pairs of neighbours in [T, H, W]."""
    if method == "tvl1_jax":
        from sptad_jax.data.tvl1 import estimate_flow  # here, since processes that decode need JAX for nothing else

        for start in range(0, len(grey) - 1, PAIRS):
            part = grey[start : start + PAIRS + 1]
            filled = np.pad(part, ((0, PAIRS + 1 - len(part)), (0, 0), (0, 0)), mode="edge")  # still pairs stop at once
            yield from np.asarray(estimate_flow(filled[:-1], filled[1:]))[: len(part) - 1]
        return
    solver = _make_solver(method, min(grey.shape[1:]))
    for before, after in itertools.pairwise(grey):
        yield solver.calc(before, after, None)


def _make_solver(method: FlowMethod, side: int) -> Any:
    contributed: Any = cv2  # what the wheel holds depends on which OpenCV package it is
    if method == "tvl1":
        if not hasattr(contributed, "optflow"):
            raise UserError("flow 'tvl1' needs OpenCV's contributed modules: install opencv-contrib-python-headless "
                            "(and no other opencv package beside it), or choose tvl1_jax or dis.")
        return contributed.optflow.DualTVL1OpticalFlow_create()
    if method != "dis":
        raise UserError(f"flow method '{method}' is unknown; choose tvl1, tvl1_jax or dis.")
    solver = contributed.DISOpticalFlow_create(contributed.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # MEDIUM stops at half resolution, which loses the small motions of small pictures
    if side <= 64:
        solver.setFinestScale(0)
    return solver
