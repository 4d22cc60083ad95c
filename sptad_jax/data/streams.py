"""One video to the streams that the network sees: the one place where decoding, flow and sizes come together."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from sptad_jax.data.optical_flow import compute_flow
from sptad_jax.data.video import FrameReader
from sptad_jax.errors import UserError

BLOCK_FRAMES = 64  # that `iterate_streams` hands out at once


def read_streams(
    path: str | os.PathLike[str], source: dict[str, Any], threads: int = 1, with_flow: bool = True
) -> tuple[dict[str, np.ndarray], float, float]:
    """Decodes a video and computes its flow as a dataset's `source` says.

    Args:
      path: any file that FFmpeg reads.
      source: "fps", "max_frames", "frame_size" (pixels of either side), "fit" (of a `FrameReader`; absent from what was
        made before there was a choice: "stretch"), and "flow": None or {"method", "bound" (stored pixels per frame at
        the ends of the byte range), "size" (pixels of either side on which flow is computed)}.
        A size above frame_size keeps small motions that flow on small pictures would lose; the field is then averaged
        down and measured in the smaller pixels.
      threads: of the decoder.
      with_flow: false leaves flow out, the slowest part by far; the pictures stay the same.

    Returns: ({"rgb": uint8 [T, S, S, 3], "flow": uint8 [T, S, S, 2] unless None}, frames per second, seconds).

    Raises UserError for a file that cannot be decoded or a method that OpenCV lacks.
    """
    reader = open_video(path, source, threads)
    blocks = list(iterate_streams(reader, source, with_flow))
    streams = {name: np.concatenate([block.pop(name) for block in blocks]) for name in list(blocks[0])}
    return streams, reader.fps, reader.duration_sec


def open_video(path: str | os.PathLike[str], source: dict[str, Any], threads: int = 1) -> FrameReader:
    """The frames of a video for `iterate_streams`; nothing is read yet. Arguments and errors as `read_streams`."""
    return FrameReader(path, source["fps"], decoded_size(source), max_frames=source["max_frames"], threads=threads,
                       fit=source.get("fit", "stretch"))


def decoded_size(source: dict[str, Any]) -> int:
    """Pixels of either side at which frames are needed. Raises UserError where flow is to be blown up."""
    size, flow = source["frame_size"], source["flow"]
    large = flow["size"] if flow else size
    if large < size:
        raise UserError(f"flow is computed on {large} pixels, less than the {size} of a stored frame; raise the first.")
    return int(large)


def iterate_streams(
    frames: Iterable[np.ndarray], source: dict[str, Any], with_flow: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Frames as they come to streams, BLOCK_FRAMES at a time, so that a long video needs no more memory than a short.

    Args:
      frames: uint8 RGB [D, D, 3] with D = `decoded_size(source)`, such as a `FrameReader`; at least one.
      source: as in `read_streams`.
      with_flow: as in `read_streams`.

    Yields the parts of what `read_streams` answers, in order.
    """
    size, flow = source["frame_size"], source["flow"] if with_flow else None
    waiting: list[np.ndarray] = []

    def to_block(count: int) -> dict[str, np.ndarray]:
        rgb = np.stack([_shrink(frame, size) for frame in waiting[:count]])
        if not flow:
            return {"rgb": rgb}
        # one frame more, since flow leads to the next; at the end of the video the last field is repeated
        pictures = np.stack(waiting[:count + 1])
        return {"rgb": rgb, "flow": compute_flow(pictures, flow["method"], flow["bound"], size)[:count]}

    for frame in frames:
        waiting.append(frame)
        if len(waiting) == BLOCK_FRAMES + 2:  # two stay: the last field of all needs a pair to be computed from
            yield to_block(BLOCK_FRAMES)
            del waiting[:BLOCK_FRAMES]
    yield to_block(len(waiting))


def _shrink(frame: np.ndarray, size: int) -> np.ndarray:
    return frame if len(frame) == size else cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
