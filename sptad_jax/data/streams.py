"""One video file to the streams that the network sees: the one place where decoding, flow and sizes come together."""

import os
from typing import Any

import cv2
import numpy as np

from sptad_jax.data.optical_flow import compute_flow
from sptad_jax.data.video import decode_video
from sptad_jax.errors import UserError


def read_streams(
    path: str | os.PathLike[str], source: dict[str, Any], threads: int = 1, with_flow: bool = True
) -> tuple[dict[str, np.ndarray], float, float]:
    """Decodes a video and computes its flow as a dataset's `source` says.

    Args:
      path: any file that FFmpeg reads.
      source: "fps", "max_frames", "frame_size" (pixels of either side), and "flow": None or {"method", "bound" (stored
        pixels per frame at the ends of the byte range), "size" (pixels of either side on which flow is computed)}.
        A size above frame_size keeps small motions that flow on small pictures would lose; the field is then averaged
        down and measured in the smaller pixels.
      threads: of the decoder.
      with_flow: false leaves flow out, the slowest part by far; the pictures stay the same.

    Returns: ({"rgb": uint8 [T, S, S, 3], "flow": uint8 [T, S, S, 2] unless None}, frames per second, seconds).

    Raises UserError for a file that cannot be decoded or a method that OpenCV lacks.
    """
    size, flow = source["frame_size"], source["flow"]
    large = flow["size"] if flow else size
    if large < size:
        raise UserError(f"flow is computed on {large} pixels, less than the {size} of a stored frame; raise the first.")
    video = decode_video(path, source["fps"], large, max_frames=source["max_frames"], threads=threads)
    frames = video.frames
    if large != size:
        frames = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames])
    streams = {"rgb": frames}
    if flow and with_flow:
        streams["flow"] = compute_flow(video.frames, flow["method"], flow["bound"], size)
    return streams, video.fps, video.duration_sec
