"""From a video file to detections: the same decoding, flow, windows and post-processing as in evaluation."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from sptad_jax import config as config_lib
from sptad_jax.config import Config
from sptad_jax.data.streams import read_streams
from sptad_jax.data.windows import make_window_starts
from sptad_jax.inference.predict import Forward, make_forward, predict_windows, windows_to_detections
from sptad_jax.training.checkpoints import load_for_inference


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained detector, ready for video files.

    classes: names in the order of the logits. source: how frames were made for training (`Dataset.source`), which new
    videos have to follow.
    """

    forward: Forward
    variables: dict[str, Any]
    config: Config
    classes: tuple[str, ...]
    source: dict[str, Any]


def load_detector(checkpoint: str | pathlib.Path) -> Detector:
    """Loads the newest checkpoint of a training's work folder. Raises UserError where there is none."""
    variables, meta = load_for_inference(pathlib.Path(checkpoint))
    config = config_lib.from_dict(meta["config"], f"--checkpoint {checkpoint}")
    classes = tuple(meta["classes"])
    return Detector(make_forward(config, len(classes)), variables, config, classes, meta["source"])


def detect_video(detector: Detector, path: str | pathlib.Path) -> tuple[list[dict[str, Any]], float]:
    """Finds actions in one video file -> (detections {"label", "score", "segment" in seconds}, duration in seconds).

    Raises UserError for a file that cannot be decoded.
    """
    config, source = detector.config, detector.source
    frames, fps, duration_sec = read_streams(path, source, threads=0, with_flow="flow" in config.model.streams)
    starts = make_window_starts(len(frames["rgb"]), config.data.num_frames, config.data.stride_test)
    batches = _window_batches({name: frames[name] for name in config.model.streams}, starts, config)
    windows = predict_windows(detector.forward, detector.variables, batches, len(starts))[0]
    detections = windows_to_detections(
        windows, duration_sec=duration_sec, fps=fps, config=config, classes=detector.classes
    )
    return detections, duration_sec


def _window_batches(
    frames: dict[str, np.ndarray], starts: np.ndarray, config: Config
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size whatever the video's length, so that the network is compiled once."""
    size, length = config.inference.batch_size, config.data.num_frames
    for first in range(0, len(starts), size):
        chosen = np.resize(starts[first : first + size], size)  # the last batch repeats windows
        batch: dict[str, np.ndarray] = {
            name: np.stack([_cut(stream, start, length) for start in chosen]) for name, stream in frames.items()
        }
        num_frames = np.minimum(len(next(iter(frames.values()))) - chosen, length)
        yield batch | {
            "num_frames": num_frames.astype(np.int32),
            "video_index": np.zeros(size, np.int32),
            "start_frame": chosen.astype(np.int32),
            "is_real": np.arange(size) < len(starts) - first,
        }


def _cut(stream: np.ndarray, start: int, length: int) -> np.ndarray:
    part = stream[start : start + length]
    return np.pad(part, ((0, length - len(part)), *((0, 0),) * (stream.ndim - 1)))
