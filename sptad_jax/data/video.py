"""Video files to uint8 frames at a fixed rate, and back."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from sptad_jax.data.framing import LOOK_FPS, LOOK_SIZE, Square, find_motion
from sptad_jax.data.pictures import Fit, scaled, to_rgb, to_square
from sptad_jax.errors import UserError

TIME_TOLERANCE_SEC = 1e-3  # Matroska and WebM round time stamps to milliseconds
TRUNCATED_SHARE = 0.9  # a file that ends before this share of its stated duration is broken
MAX_ASPECT = 4.0  # of a pixel's longer side to its shorter; damaged headers state more, and pictures would be huge
MAX_GAP_SEC = 600.0  # a picture that stands longer comes from damaged time stamps; it would be repeated without end
AHEAD = 4  # pictures that are decoded while one is used
# names of video files in a folder; a file that is named itself may end in anything
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif",
           ".3gp", ".mts", ".m2ts", ".vob", ".ogv")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DecodedVideo:
    """Frames at a fixed rate: frame i is what a player shows i / fps seconds after the first frame."""

    frames: np.ndarray  # uint8 RGB [T, size, size, 3]
    fps: float  # of `frames`
    duration_sec: float  # of the file's video stream, as decoded
    source_frames: int  # in the file


class FrameReader:
    """Iterates, once, over a video's frames at a fixed rate: uint8 RGB [size, size, 3], a few in memory at a time.

    Frame i is the last source frame whose time stamp is not after i / fps (to the millisecond), times counted from the
    first frame: a slow source repeats frames, a fast one skips some. Shrinking averages areas, enlarging is bilinear.

    Args:
      path: any file that FFmpeg reads.
      fps: frames per second to take.
      size: pixels of either side.
      max_frames: where positive, the rate of a long video is lowered so that this many frames cover it, and is never
        above the source's own: ActivityNet's fixed length (paper 4.1; AFSD/anet_data/transform_videos.py:36-37). The
        file is then decoded twice, once for its own rate.
      threads: of the decoder.
      fit: "stretch" shows the whole picture and ignores its aspect ratio (AFSD/common/video2npy.py:46-63); "crop" keeps
        the ratio, also of pixels that are not square, and shows the central square, as is usual for Kinetics; "motion"
        shows the square in which something moves (`find_motion`; the file is decoded once more for that), which
        enlarges people who are small in the picture.

    Attributes `fps`, `duration_sec` and `source_frames`, as in `DecodedVideo`, are right after the last frame.

    Iterating raises UserError for a file that is missing, holds no video, cannot be decoded, or ends far before its
    stated duration.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float, size: int, *, max_frames: int = 0, threads: int = 1,
        fit: Fit = "stretch",
    ) -> None:
        self.path, self.fps, self.size, self.fit = path, fps, size, fit
        self.max_frames, self.threads = max_frames, threads
        self.duration_sec = 0.0
        self.source_frames = 0
        self._square: Square | None = None
        self._reformatter = VideoReformatter()  # keeps FFmpeg's conversion tables from frame to frame

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.max_frames:
            source_fps, duration_sec = _measure(self.path)
            self.fps = min(source_fps, self.max_frames / duration_sec)
        if self.fit == "motion":
            self._square = find_motion(self._look())
        for (frame, aspect), count in _ahead(self._choose()):
            with _explain(self.path):
                image = to_square(frame, aspect, self._reformatter, self.size, self.fit, self._square)
            for _ in range(count):
                yield image

    def _look(self) -> Iterator[np.ndarray]:
        """Small grey pictures of the whole video for `find_motion`."""
        reader = FrameReader(self.path, LOOK_FPS, LOOK_SIZE, threads=self.threads)
        size: tuple[int, int] | None = None
        for (frame, aspect), _ in reader._choose():
            with _explain(self.path):
                size = size or scaled(frame, aspect, LOOK_SIZE)  # of all, also where the picture's shape changes
                yield cv2.cvtColor(to_rgb(frame, self._reformatter, *size), cv2.COLOR_RGB2GRAY)

    def _choose(self) -> Iterator[tuple[tuple[av.VideoFrame, float], int]]:
        """The source frames that are taken, each with the shape of its pixels, and how many times each is."""
        taken = 0
        latest: tuple[av.VideoFrame, float] | None = None
        self.source_frames = 0
        for start_sec, end_sec, frame, aspect in _decode(self.path, self.threads):
            if latest is not None and (count := self._count_before(start_sec) - taken) > 0:
                taken += count
                yield latest, count
            latest, self.duration_sec = (frame, aspect), end_sec
            self.source_frames += 1
        assert latest is not None  # `_decode` refuses a file without frames
        if (count := self._count_before(max(self.duration_sec, 2 * TIME_TOLERANCE_SEC)) - taken) > 0:
            yield latest, count

    def _count_before(self, end_sec: float) -> int:
        """How many sampling times lie before `end_sec`."""
        count = math.ceil((end_sec - TIME_TOLERANCE_SEC) * self.fps)
        return min(count, self.max_frames) if self.max_frames else count


def decode_video(
    path: str | os.PathLike[str], fps: float, size: int, *, max_frames: int = 0, threads: int = 1
) -> DecodedVideo:
    """All frames of a video (or an animated GIF) at once; arguments and errors as `FrameReader`."""
    reader = FrameReader(path, fps, size, max_frames=max_frames, threads=threads)
    frames = np.stack(list(reader))
    return DecodedVideo(frames, reader.fps, reader.duration_sec, reader.source_frames)


def read_frames_at(path: str | os.PathLike[str], times_sec: Sequence[float], height: int = 120) -> list[np.ndarray]:
    """The pictures shown at some times, uint8 RGB [height, W, 3] in their own aspect ratio, in the order of the times.

    A time beyond the end gives the last frame. Raises UserError as `decode_video`.
    """
    order = np.argsort(times_sec, kind="stable")
    pictures: list[np.ndarray | None] = [None] * len(times_sec)
    waiting = [int(i) for i in order]
    latest, reformatter = None, VideoReformatter()
    for start_sec, _, frame, _ in _decode(path, threads=1):
        while waiting and latest is not None and times_sec[waiting[0]] < start_sec - TIME_TOLERANCE_SEC:
            pictures[waiting.pop(0)] = to_rgb(latest, reformatter, height)
        latest = frame
    for i in waiting:
        assert latest is not None
        pictures[i] = to_rgb(latest, reformatter, height)
    return [picture for picture in pictures if picture is not None]


def iterate_frames(path: str | os.PathLike[str]) -> Iterator[tuple[float, float, np.ndarray]]:
    """Every source frame in its own size, upright: (start_sec, end_sec, uint8 RGB [H, W, 3]), times from the first.

    One frame is in memory at a time. Raises UserError as `FrameReader`, at the end for a file that is cut short.
    """
    reformatter = VideoReformatter()
    for start_sec, end_sec, frame, _ in _decode(path, threads=0):
        with _explain(path):
            image = to_rgb(frame, reformatter)
        yield start_sec, end_sec, image


def stated_duration(path: str | os.PathLike[str]) -> float:
    """Seconds of video that the file's header promises; 0 where it promises nothing or cannot be read."""
    if not os.path.isfile(path):  # opening a pipe would wait for someone to write
        return 0.0
    with contextlib.suppress(av.error.FFmpegError, OSError, ValueError), av.open(os.path.abspath(path)) as container:
        if container.streams.video:
            return max(_stated_duration(container, container.streams.video[0]), 0.0)
    return 0.0


def write_video(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float, crf: int = 18) -> None:
    """Encodes uint8 RGB frames [H, W, 3] (even H and W) as H.264 in MP4; the file appears whole or not at all.

    `crf` is libx264's quality: 0 loses nothing but chroma resolution, 51 is the worst. The same frames give the same
    file, on x86 processors of any kind.
    """
    rate = Fraction(fps).limit_denominator(1001)
    temporary = f"{os.path.abspath(path)}.tmp{os.getpid()}"
    # Else x264's macroblock tree, on processors with AVX-512, makes other bits of the same small pictures at times.
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": "cpu-independent=1"}
    try:
        with av.open(temporary, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for i, image in enumerate(frames):
                if i == 0:
                    stream.height, stream.width = image.shape[:2]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                # Converted here, since the encoder's own conversion of the same frames gives differing bytes at times.
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _measure(path: str | os.PathLike[str]) -> tuple[float, float]:
    """Mean frame rate and duration in seconds, from the time stamps themselves: headers are often wrong."""
    count, last_sec = 0, 0.0
    for _, end_sec, *_ in _decode(path, threads=1):
        count, last_sec = count + 1, end_sec
    return count / last_sec, last_sec


def _decode(path: str | os.PathLike[str], threads: int) -> Iterator[tuple[float, float, av.VideoFrame, float]]:
    """Yields (start_sec, end_sec, frame, width of a stored pixel to its height) in order of display, times from the
    first frame; checks the whole file."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such video file.")
    with _explain(path), av.open(os.path.abspath(path)) as container:  # else "12:30.mp4" has a protocol
        if not container.streams.video:
            raise UserError(f"{path}: the file holds no video stream; give a video file.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UserError(f"{path}: FFmpeg has no decoder for its video; convert it, to H.264 for example.")
        stream.codec_context.thread_count = threads
        step_sec = float(1 / stream.average_rate) if stream.average_rate else 0.04
        aspect = float(stream.sample_aspect_ratio or 1)
        aspect = aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0
        first, time_sec, end_sec = None, -step_sec, 0.0
        for frame in container.decode(stream):
            stamp = None if frame.time is None else float(frame.time)
            first = stamp if first is None else first
            before_sec = time_sec
            # without a usable stamp a frame follows the one before at the mean rate
            time_sec = time_sec + step_sec if stamp is None or first is None else max(stamp - first, time_sec, 0.0)
            length = frame.duration * frame.time_base if frame.duration and frame.time_base else step_sec
            end_sec = time_sec + float(length)
            if end_sec - before_sec > MAX_GAP_SEC:
                raise UserError(f"{path}: at {max(before_sec, 0.0):.1f} s its time stamps leap by "
                                f"{end_sec - before_sec:.0f} s; they are damaged, convert the file anew.")
            yield time_sec, end_sec, frame, aspect
        if end_sec == 0.0:
            raise UserError(f"{path}: not one frame could be decoded; the file is broken, obtain it again.")
        # some containers count from 0 although the first picture comes later
        stated_sec = _stated_duration(container, stream) - max(first or 0.0, 0.0)
    if end_sec < TRUNCATED_SHARE * stated_sec:
        raise UserError(f"{path}: ends after {end_sec:.1f} s although it states {stated_sec:.1f} s; the file is cut "
                        "short, obtain it again.")


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items; a thread makes the next ones while one is used: FFmpeg and OpenCV let go of Python's lock."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = collections.deque(thread.submit(next, items, end) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item


@contextlib.contextmanager
def _explain(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what FFmpeg raises for a broken file into a sentence. Raises UserError."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or ["too little memory"])[0]
        raise UserError(f"{path}: cannot be decoded ({reason}); the file is broken or no video, obtain it again."
                        ) from None


def _stated_duration(container: "av.container.InputContainer", stream: "av.video.stream.VideoStream") -> float:
    """Seconds of video that the header promises; 0 where it promises nothing."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # other streams may be longer than the video
        return container.duration / av.time_base
    return 0.0
