"""What a dataset holds and how many windows it gives, from annotations and lengths alone: no video is needed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sptad_jax.config import DataConfig
from sptad_jax.data.annotations import Video, clip_to_duration
from sptad_jax.data.windows import VideoTargets, index_windows
from sptad_jax.errors import UserError

RULES = ("afsd", "paper", "all")
QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "q98": 0.98, "max": 1.0}


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a video is once it is resampled."""

    num_frames: int  # sampled frames
    fps: float  # of the sampled frames
    duration_sec: float


def count(
    videos: Sequence[Video], lengths: Mapping[str, Length], classes: Sequence[str], *, rule: str, length: int,
    stride: int, frames_from: int = 0, exceptions: Sequence[str] = (),
) -> dict[str, Any]:
    """Statistics of one subset, as the commands `count` print them.

    Args:
      videos: with annotations of `classes` only.
      lengths: by video name; a video without one has no windows, which is said in "exceptions".
      classes: in the order of class indices.
      rule: of windows, "afsd", "paper" or "all"; see sptad_jax.data.windows.index_windows.
      length: frames of a window.
      stride: frames between windows.
      frames_from: as in `count_windows`.
      exceptions: sentences found so far; those about segments beyond a video's end are added behind them.

    Returns {"videos", "instances", "frames", "hours", "windows", "kept_targets", "most_targets", "duration_sec",
    "exceptions"}. "instances" are all that the videos have, "duration_sec" describes those that begin within the video.

    Raises UserError for a length or stride below 1, or where no video is left.
    """
    if length < 1 or stride < 1:
        raise UserError(f"--length {length} and --stride {stride} are frames; both must be at least 1.")
    if not videos:
        raise UserError("not one video to count; check --subset and --annotations.")
    notes = list(exceptions)
    clipped = []
    for video in videos:
        rows = video.annotations
        known = lengths.get(video.name)
        if known is None:
            notes.append(f"video '{video.name}': its length is not known, so it gives no windows; name a file that has "
                         "it with --lengths.")
        else:
            rows = clip_to_duration(rows, known.duration_sec, f"video '{video.name}'", notes)
        clipped.append(dataclasses.replace(video, annotations=rows))
    usable = [video for video in clipped if video.name in lengths]
    windows = {"windows": 0, "kept_targets": 0, "most_targets": 0}
    if usable:
        targets = make_targets(usable, lengths, classes)
        windows = count_windows(targets, rule=rule, length=length, stride=stride, frames_from=frames_from)
    return {
        "videos": len(videos),
        "instances": sum(len(video.annotations) for video in videos),
        "frames": sum(lengths[video.name].num_frames for video in usable),
        "hours": round(sum(lengths[video.name].duration_sec for video in usable) / 3600, 3),
        **windows,
        "duration_sec": describe_durations(clipped),
        "exceptions": notes,
    }


def count_windows(
    videos: Sequence[VideoTargets], *, rule: str, length: int, stride: int, frames_from: int = 0
) -> dict[str, int]:
    """How many windows `index_windows` keeps, the targets in all of them together, and the most in one.

    With frames_from=1 windows are AFSD's: it numbers frames from 1, so that a window at offset s reaches from s + 1 to
    s + length and is one frame shorter than here (AFSD/common/thumos_dataset.py:93-110). Every time less one, in videos
    and windows less one frame, is the same comparison.
    """
    if frames_from:
        videos = [dataclasses.replace(v, num_frames=v.num_frames - frames_from,
                                      segments_frame=v.segments_frame - frames_from) for v in videos]
    most_possible = max(len(video.labels) for video in videos)
    config = DataConfig(num_frames=length - frames_from, max_targets=most_possible,
                        window_rule=rule)  # type: ignore[arg-type]
    num_classes = 1 + max((int(video.labels.max()) for video in videos if len(video.labels)), default=0)
    index = index_windows(videos, config, num_classes, stride)
    return {"windows": len(index), "kept_targets": int(index.valid.sum()),
            "most_targets": int(index.valid.sum(axis=1).max(initial=0))}


def make_targets(
    videos: Sequence[Video], lengths: Mapping[str, Length], classes: Sequence[str]
) -> list[VideoTargets]:
    """Instances in sampled frames and class indices, ready for windows; every video must be in `lengths`."""
    class_index = {name: i for i, name in enumerate(classes)}
    return [VideoTargets(
        name=video.name, index=i, num_frames=lengths[video.name].num_frames,
        segments_frame=np.array([a.segment_sec for a in video.annotations]).reshape(-1, 2) * lengths[video.name].fps,
        labels=np.array([class_index[a.label] for a in video.annotations], np.int32),
    ) for i, video in enumerate(videos)]


def describe_durations(videos: Sequence[Video]) -> dict[str, float]:
    """Mean and quantiles of the instances' durations in seconds, {} where there is no instance."""
    durations_sec = [end - start for video in videos for start, end in (a.segment_sec for a in video.annotations)]
    if not durations_sec:
        return {}
    values = {name: float(np.quantile(durations_sec, share)) for name, share in QUANTILES.items()}
    return {name: round(value, 3) for name, value in {"mean": float(np.mean(durations_sec)), **values}.items()}
