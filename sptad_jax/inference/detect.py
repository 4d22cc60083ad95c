"""From a video file to detections: the same decoding, flow, windows and post-processing as in evaluation.

A video is never held: frames, flow and windows pass by, and what grows with its length is what the network answers,
some kilobytes a window.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, cast, get_args

import jax
import numpy as np

from sptad_jax import config as config_lib
from sptad_jax.config import Config
from sptad_jax.data.optical_flow import FlowMethod
from sptad_jax.data.pictures import Fit
from sptad_jax.data.streams import iterate_streams, open_video
from sptad_jax.data.video import FrameReader
from sptad_jax.errors import UserError
from sptad_jax.files import AnyPath
from sptad_jax.inference.export import read_detector
from sptad_jax.inference.postprocess import windows_to_detections
from sptad_jax.inference.predict import Forward, make_forward
from sptad_jax.inference.sharing import run_batches
from sptad_jax.program_cache import keep_programs
from sptad_jax.training import sharding

MAX_SIDE = 4096  # pixels; a checkpoint that asks for larger frames is damaged
MAX_FPS = 1000.0

Window = tuple[int, int, dict[str, np.ndarray]]  # first frame, real frames, stream -> uint8 [F, S, S, C]


class Detection(TypedDict):
    """One action in a video. segment: [start, end] in seconds from the first frame. score: in 0..1."""

    label: str
    score: float
    segment: list[float]


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained detector, ready for video files.

    classes: names in the order of the logits. source: how frames were made for training (`Dataset.source`), which new
    videos have to follow. step: training steps behind the weights.
    """

    forward: Forward
    variables: dict[str, Any]
    config: Config
    classes: tuple[str, ...]
    source: dict[str, Any]
    step: int = 0

    def detect(
        self,
        video: str | os.PathLike[str],
        *,
        threshold: float = 0.0,
        classes: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> list[Detection]:
        """Actions in a video file of any length, best first.

        Args:
          video: any file that FFmpeg reads.
          threshold: detections of a lower score are left out.
          classes: labels to keep; None: all.
          top_k: how many to keep at most, the best; None: all.

        Raises UserError for a file that cannot be decoded, or an unknown class.
        """
        check_classes(classes, self.classes)
        return select(detect_video(self, video)[0], threshold, classes, top_k)


def load_detector(
    checkpoint: str | pathlib.Path, programs: AnyPath | None = None, overrides: Sequence[str] = ()
) -> Detector:
    """Loads the newest checkpoint of a training's work folder, or an exported .safetensors file.

    It computes on all devices of this process. `programs`: folder in which its compiled network is kept for the next
    process, see `keep_programs`. `overrides`: options in place of the training's, as "inference.vote=true". Raises
    UserError where there is no checkpoint, its parts do not belong together, or an option is not open to change.
    """
    where = f"--checkpoint {checkpoint}"
    variables, meta = read_detector(checkpoint, overrides)
    config, classes = config_lib.from_dict(meta["config"], where), tuple(meta["classes"])
    _check_source(meta["source"], config, where)
    keep_programs(programs, config.model.compute_dtype)  # first, as it decides on the form of the network
    devices = sharding.local_mesh()
    forward = make_forward(config, len(classes), devices)
    variables = sharding.replicate(variables, devices)
    return Detector(forward, variables, config, classes, meta["source"], meta["step"])


def detect_video(
    detector: Detector, path: str | os.PathLike[str], on_progress: Callable[[float], None] | None = None
) -> tuple[list[Detection], float]:
    """Finds actions in one video file -> (detections, best first; duration in seconds).

    `on_progress` is called with the seconds of video that are done, now and then. Raises UserError for a file that
    cannot be decoded.
    """
    config = detector.config
    reader, batches = read_batches(detector, path)
    columns: dict[str, list[np.ndarray]] = {}
    waiting: tuple[Any, dict[str, np.ndarray]] | None = None

    def collect(out: Any, batch: dict[str, np.ndarray]) -> None:
        rows = jax.device_get(out) | {"start_frame": batch["start_frame"]}
        for name, value in rows.items():
            columns.setdefault(name, []).append(value[batch["is_real"]])
        if on_progress:
            on_progress(float(batch["start_frame"].max() + config.data.num_frames) / reader.fps)

    for out, batch in run_batches(detector.forward, detector.variables, batches):
        if waiting:
            collect(*waiting)
        waiting = out, batch
    assert waiting is not None  # a video without frames is refused
    collect(*waiting)
    detections = windows_to_detections(
        {name: np.concatenate(values) for name, values in columns.items()},
        duration_sec=reader.duration_sec, fps=reader.fps, config=config, classes=detector.classes,
    )  # fmt: skip
    return cast(list[Detection], detections), reader.duration_sec


def read_batches(
    detector: Detector, path: str | os.PathLike[str]
) -> tuple[FrameReader, Iterator[dict[str, np.ndarray]]]:
    """A video file as the detector wants it -> (its reader, batches of windows as of `batch_windows`).

    Nothing is read yet; the reader knows rate and duration when the batches are through. They raise UserError for a
    file that cannot be decoded.
    """
    config, source = detector.config, detector.source
    reader = open_video(path, source, threads=0)
    blocks = iterate_streams(reader, source, with_flow="flow" in config.model.streams)
    taken = ({name: block[name] for name in config.model.streams} for block in blocks)
    windows = cut_windows(taken, config.data.num_frames, config.data.stride_test)
    return reader, batch_windows(windows, sharding.round_up(config.inference.batch_size, jax.local_device_count()))


def select(
    detections: Sequence[Detection], threshold: float = 0.0, classes: Sequence[str] | None = None,
    top_k: int | None = None,
) -> list[Detection]:
    """Those of the classes with a score of at least `threshold`, and of these the first `top_k`, in their order."""
    kept = [row for row in detections
            if row["score"] >= threshold and (classes is None or row["label"] in classes)]  # fmt: skip
    return kept[:top_k]


def check_classes(chosen: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raises UserError for a class that the detector does not know."""
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        raise UserError(f"unknown class {', '.join(unknown)}; the detector knows: {', '.join(known)}.")


def cut_windows(blocks: Iterable[dict[str, np.ndarray]], length: int, stride: int) -> Iterator[Window]:
    """The windows of `make_window_starts` as the video passes by; at most a window and a block are held.

    Args:
      blocks: consecutive parts of a video, stream -> [n, ...].
      length, stride: frames.

    Yields windows in order of time; frames beyond the end of the video are 0.
    """
    held: dict[str, np.ndarray] = {}  # frames first..total - 1
    first, total, start = 0, 0, 0  # `start` is that of the next window

    def cut(start: int) -> Window:
        parts = {name: frames[start - first:start - first + length] for name, frames in held.items()}
        return start, min(total - start, length), {name: _pad(part, length) for name, part in parts.items()}

    for block in blocks:
        held = {name: np.concatenate([held[name], part]) if held else part for name, part in block.items()}
        total = first + len(next(iter(held.values())))
        while start + length <= total:
            yield cut(start)
            start += stride
        drop = max(total - length - first, 0)  # the window at the end of the video may need the others
        held = {name: frames[drop:] for name, frames in held.items()}
        first += drop
    last = max(total - length, 0)
    if start - stride != last:
        yield cut(last)


def batch_windows(windows: Iterable[Window], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size whatever the video's length, so that the network is compiled once.

    Yields {stream: [B, F, S, S, C], "num_frames" int32 [B], "start_frame" int32 [B], "is_real" bool [B]}; the last one
    is filled up with its own windows over again, which are not real.
    """
    rows: list[Window] = []
    for window in windows:
        rows.append(window)
        if len(rows) == size:
            yield _stack(rows, size)
            rows = []
    if rows:
        yield _stack(rows, size)


def _stack(rows: list[Window], size: int) -> dict[str, np.ndarray]:
    chosen = [rows[i % len(rows)] for i in range(size)]
    batch = {name: np.stack([streams[name] for _, _, streams in chosen]) for name in chosen[0][2]}
    return batch | {
        "num_frames": np.array([count for _, count, _ in chosen], np.int32),
        "start_frame": np.array([start for start, _, _ in chosen], np.int32),
        "is_real": np.arange(size) < len(rows),
    }


def _pad(part: np.ndarray, length: int) -> np.ndarray:
    return np.pad(part, ((0, length - len(part)), *((0, 0),) * (part.ndim - 1)))


def _check_source(source: Any, config: Config, where: str) -> None:
    """Refuses frame settings of a checkpoint with which no video could be read. Raises UserError."""
    fields = source if isinstance(source, dict) else {}
    flow, size, most = fields.get("flow"), fields.get("frame_size"), fields.get("max_frames")
    rules = [
        (_is_number(fields.get("fps"), 0.0, MAX_FPS), f"fps must lie in (0, {MAX_FPS:g}]"),
        (isinstance(most, int) and most >= 0, "max_frames must be a count or 0"),
        (isinstance(size, int) and config.data.crop_size <= size <= MAX_SIDE,
         f"frame_size must lie between data.crop_size ({config.data.crop_size}) and {MAX_SIDE}"),
        (fields.get("fit", "stretch") in get_args(Fit), "fit must be stretch, crop or motion"),
        (flow is None or (isinstance(flow, dict) and flow.get("method") in get_args(FlowMethod)
                          and _is_number(flow.get("bound"), 0.0, 1e6) and isinstance(flow.get("size"), int)
                          and flow["size"] <= MAX_SIDE),
         "flow must be null or have method (tvl1, tvl1_jax or dis), bound and size"),
        (flow is not None or "flow" not in config.model.streams, "flow is null although model.streams has flow"),
    ]  # fmt: skip
    broken = [sentence for holds, sentence in rules if not holds]
    if broken:
        raise UserError(f"{where}: in 'source', which says how frames are made, {broken[0]}; use a checkpoint that "
                        "train.py wrote.")  # fmt: skip


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low < value <= high
