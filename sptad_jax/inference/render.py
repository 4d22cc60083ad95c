"""A copy of a video in which the detected actions are written on the pictures while they last."""

import functools
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import matplotlib
import numpy as np
from matplotlib import font_manager, ft2font
from PIL import Image, ImageDraw, ImageFont

from sptad_jax.data.video import iterate_frames
from sptad_jax.errors import UserError
from sptad_jax.inference.detect import Detection

TIME_BASE = Fraction(1, 90_000)  # MPEG's clock; every common frame rate is a whole number of its ticks
DEFAULT_FONT = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic
MAX_LABELS = 8  # at once, the best; below the share of a picture's height that a line takes
LINE_SHARE = 1 / 18
# Okabe and Ito's colours, told apart by colour-blind people, too; by the order of the classes
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def render_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    detections: Sequence[Detection],
    classes: Sequence[str],
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Writes H.264 in MP4, without sound: every frame of the source at its own time and in its own size, upright.

    One source frame is held at a time. An odd width or height grows by one pixel, since H.264's common form has none.

    Args:
      source: any file that FFmpeg reads.
      target: an .mp4 file; it appears whole or not at all.
      detections: what to write, best first; a frame shows those whose segment holds its time, at most `MAX_LABELS`.
      classes: all names; the place in it gives a class its colour.
      on_progress: called with the seconds of video that are done, after every frame.

    Raises UserError for a source that cannot be decoded or a target that cannot be written.
    """
    target = pathlib.Path(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    rate, aspect = _rate_and_aspect(source)
    frames, last_pts = _label_frames(source, detections, classes), -1
    try:
        with av.open(os.path.abspath(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = TIME_BASE
            for start_sec, duration_sec, image in frames:
                if not stream.width or not stream.codec_context.is_open:
                    stream.height, stream.width = image.shape[:2]
                    stream.codec_context.sample_aspect_ratio = aspect
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                    width=stream.width, height=stream.height, format="yuv420p")  # fmt: skip
                last_pts = max(round(start_sec / TIME_BASE), last_pts + 1)  # damaged times stand still
                frame.pts, frame.time_base = last_pts, TIME_BASE
                frame.duration = max(round(duration_sec / TIME_BASE), 1)
                container.mux(stream.encode(frame))
                if on_progress:
                    on_progress(start_sec)
            container.mux(stream.encode(None))
        os.replace(temporary, target)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--render: {target} cannot be written ({reason}); choose another folder.") from None
    finally:
        temporary.unlink(missing_ok=True)


def draw_labels(image: np.ndarray, detections: Sequence[Detection], classes: Sequence[str]) -> None:
    """Writes labels with scores on uint8 RGB [H, W, 3], in place, one below the other from the upper left corner."""
    line = max(round(image.shape[0] * LINE_SHARE), 8)
    top = line // 2
    for row in detections[:MAX_LABELS]:
        colour = COLOURS[classes.index(row["label"]) % len(COLOURS)]
        tile = label_tile(f"{row['label']}  {row['score']:.2f}", line, colour)
        place = image[top:top + line, line // 2:line // 2 + tile.shape[1]]
        place[:] = tile[:place.shape[0], :place.shape[1]]
        top += line + 2


@functools.lru_cache(maxsize=1024)
def label_tile(text: str, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """White text on black behind a bar of `colour`: uint8 RGB [height, W, 3].

    Characters that no font of this machine has come out as boxes.
    """
    text = " ".join(text.split())
    font = ImageFont.truetype(find_font(text), round(0.72 * height))
    bar = max(height // 4, 1)
    width = round(font.getlength(text)) + 3 * bar
    image = Image.new("RGB", (max(width, 1), height))
    drawing = ImageDraw.Draw(image)
    drawing.rectangle((0, 0, bar - 1, height), fill=colour)
    drawing.text((2 * bar, height / 2), text, font=font, anchor="lm", fill="white")
    return np.asarray(image)


@functools.lru_cache(maxsize=1024)
def find_font(text: str) -> str:
    """A font file that has every character of `text`: the one that comes with matplotlib, or one of the machine's.

    That of matplotlib where there is none. OpenCV's own text has Latin letters only before version 5.
    """
    wanted = {ord(character) for character in text if not character.isspace()}
    return next((path for path, characters in _fonts() if wanted <= characters), str(DEFAULT_FONT))


def _fonts() -> Iterator[tuple[str, frozenset[int]]]:
    for path in [str(DEFAULT_FONT), *sorted(font_manager.findSystemFonts())]:
        yield path, _characters(path)


@functools.lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged font, or a bitmap one
        return frozenset()


def _label_frames(
    source: str | os.PathLike[str], detections: Sequence[Detection], classes: Sequence[str]
) -> Iterator[tuple[float, float, np.ndarray]]:
    for start_sec, end_sec, frame in iterate_frames(source):
        odd_rows, odd_columns = frame.shape[0] % 2, frame.shape[1] % 2
        image = np.pad(frame, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
        active = [row for row in detections if row["segment"][0] <= start_sec < row["segment"][1]]
        draw_labels(image, active, classes)
        yield start_sec, end_sec - start_sec, image


def _rate_and_aspect(source: str | os.PathLike[str]) -> tuple[Fraction, Fraction]:
    """Frames per second, and the width of a pixel to its height."""
    try:
        with av.open(os.path.abspath(source)) as container:
            stream = container.streams.video[0]
            rate, aspect = stream.average_rate or Fraction(25), stream.sample_aspect_ratio or Fraction(1)
            return Fraction(rate.numerator, rate.denominator), Fraction(aspect.numerator, aspect.denominator)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise UserError(f"{source}: cannot be decoded ({error}); the file is broken or no video.") from None
