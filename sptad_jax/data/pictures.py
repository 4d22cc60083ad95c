"""One decoded picture of a video to an array of RGB bytes."""

from typing import Literal

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from sptad_jax.data.framing import Square

Fit = Literal["stretch", "crop", "motion"]  # how a picture becomes a square
# FFmpeg's scaler without its short cuts: colours at every pixel, rounded to nearest, the same bytes on every CPU.
EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def to_square(
    frame: av.VideoFrame, aspect: float, reformatter: VideoReformatter, size: int, fit: Fit, square: Square | None
) -> np.ndarray:
    """Upright uint8 RGB [size, size, 3]: the whole picture, or a square of it, the central one where none is given."""
    if fit == "stretch":
        return to_rgb(frame, reformatter, size, size)
    height, width = scaled(frame, aspect, size / square[2] if square else size)
    image = to_rgb(frame, reformatter, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    if square:
        top, left = (min(round(start * size / square[2]), length - size)
                     for start, length in zip(square[:2], (height, width), strict=True))
    return np.ascontiguousarray(image[top:top + size, left:left + size])


def scaled(frame: av.VideoFrame, aspect: float, shorter: float) -> tuple[int, int]:
    """Height and width of the upright picture, in square pixels, `shorter` of them along its shorter side."""
    turns, height, width = upright(frame)
    shown = (height * aspect, width) if turns % 2 else (height, width * aspect)
    scale = shorter / min(shown)
    return round(shown[0] * scale), round(shown[1] * scale)


def upright(frame: av.VideoFrame) -> tuple[int, int, int]:
    """Quarter turns until it is upright, and its height and width then."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # telephones store a lying picture and how to turn it
    return (turns, frame.width, frame.height) if turns % 2 else (turns, frame.height, frame.width)


def to_rgb(
    frame: av.VideoFrame, reformatter: VideoReformatter, height: int | None = None, width: int | None = None
) -> np.ndarray:
    """Upright uint8 RGB [height, width, 3], by default of the frame's own height, and in its own aspect ratio."""
    turns, own_height, own_width = upright(frame)
    height = height or own_height
    width = width or max(1, round(own_width * height / own_height))
    shrinks = width <= own_width and height <= own_height
    method = (Interpolation.AREA if shrinks else Interpolation.BILINEAR) | EXACT
    size = (height, width) if turns % 2 else (width, height)
    # in planes, since FFmpeg's code for these is twice as fast as for interleaved bytes
    planes = reformatter.reformat(frame, *size, "gbrp", interpolation=method | EXACT, threads=1).planes
    green, blue, red = (np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, :size[0]]
                        for plane in planes)
    return np.ascontiguousarray(np.rot90(cv2.merge((red, green, blue)), turns))


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] or [H, W] of any dtype to that height and width: areas are averaged, enlarging is bilinear."""
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
