"""Sliding windows over a video and the targets of each (paper 4.1 and footnote 1)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sptad_jax import segments
from sptad_jax.config import DataConfig
from sptad_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VideoTargets:
    """What the windows of one video need: its length in frames and its instances in units of those frames."""

    name: str
    index: int  # into the dataset's videos
    num_frames: int
    segments_frame: np.ndarray  # float64 [G, 2], (start, end)
    labels: np.ndarray  # int32 [G], class indices


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """W windows, in the order of videos and time. M is DataConfig.max_targets, A the number of classes."""

    video_index: np.ndarray  # int32 [W], into the dataset's videos
    start_frame: np.ndarray  # int32 [W]
    num_frames: np.ndarray  # int32 [W], real frames; fewer than F only where the video is shorter than a window
    segments_norm: np.ndarray  # float32 [W, M, 2], (start, end) as a share of F frames, cut at the window
    labels: np.ndarray  # int32 [W, M]
    valid: np.ndarray  # bool [W, M]
    clip_labels: np.ndarray  # float32 [W, A], multi-hot

    def __len__(self) -> int:
        return len(self.video_index)


def make_window_starts(num_frames: int, length: int, stride: int) -> np.ndarray:
    """First frames of the windows of a video: every `stride`, and one aligned to the end where a tail is left.

    A video that is not longer than a window has one window, at 0. Returns int64 [W]. As AFSD,
    AFSD/common/thumos_dataset.py:83-91.
    """
    last = num_frames - length
    if last <= 0:
        return np.zeros(1, np.int64)
    starts = np.arange(0, last + 1, stride, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, last)


def index_windows(videos: Sequence[VideoTargets], config: DataConfig, num_classes: int, stride: int) -> WindowIndex:
    """Cuts every video into windows and gives each its targets.

    A target is an instance of which more than `min_tioa` lies in the window (tIoA, footnote 1), cut at the window's
    borders. Which windows are kept is `window_rule`: "paper" those with at least one target; "afsd" those in which
    one instance lies wholly, with targets of tIoA >= min_tioa (AFSD/common/thumos_dataset.py:100-110); "all" every one.

    Raises UserError where a window has more targets than `max_targets`.
    """
    kept = [_index_video(video, config, num_classes, stride) for video in videos]
    fields = [field.name for field in dataclasses.fields(WindowIndex)]
    if not kept:
        raise UserError("no video to cut windows from; check data.train_subset and data.test_subset.")
    return WindowIndex(**{name: np.concatenate([getattr(part, name) for part in kept]) for name in fields})


def index_test_windows(videos: Sequence[VideoTargets], length: int, stride: int) -> WindowIndex:
    """All windows of the videos, without targets (M and A are 0): inference sees no ground truth."""
    config = DataConfig(num_frames=length, window_rule="all", max_targets=0)
    empty = [dataclasses.replace(v, segments_frame=np.zeros((0, 2)), labels=np.zeros(0, np.int32)) for v in videos]
    return index_windows(empty, config, 0, stride)


def shuffle_labels(videos: Sequence[VideoTargets], seed: int) -> list[VideoTargets]:
    """Control experiment: labels permuted among all instances, so that nothing but chance can be learnt of classes."""
    counts = [len(video.labels) for video in videos]
    joined = np.concatenate([video.labels for video in videos]) if videos else np.zeros(0, np.int32)
    permuted = np.random.default_rng(seed).permutation(joined)
    parts = np.split(permuted, np.cumsum(counts)[:-1])
    return [dataclasses.replace(video, labels=part) for video, part in zip(videos, parts)]


def _index_video(video: VideoTargets, config: DataConfig, num_classes: int, stride: int) -> WindowIndex:
    starts = make_window_starts(video.num_frames, config.num_frames, stride)
    return _cut_targets(video, starts, config.num_frames, config, num_classes)


def stretch_window(video: VideoTargets, start: int, factor: float, config: DataConfig,
                   num_classes: int) -> tuple[np.ndarray, WindowIndex] | None:
    """A window of F frames of which each stands for `factor` frames of the video, about the middle of that at `start`.

    The factor is at most that at which the window is the whole video. Returns the frames to read, int64 [F], and the
    window's targets (W = 1); None where `window_rule` refuses it, it holds too many targets, or the video is shorter
    than a window.
    """
    length = config.num_frames
    if video.num_frames < length:
        return None
    extent = length * min(factor, video.num_frames / length)
    first = min(max(start + (length - extent) / 2, 0.0), video.num_frames - extent)
    try:
        index = _cut_targets(video, np.array([first]), extent, config, num_classes)
    except UserError:
        return None
    frames = np.floor(first + (np.arange(length) + 0.5) * (extent / length)).astype(np.int64)
    return (np.minimum(frames, video.num_frames - 1), index) if len(index) else None


def _cut_targets(video: VideoTargets, starts: np.ndarray, length: float, config: DataConfig,
                 num_classes: int) -> WindowIndex:
    """Those of the windows of `length` frames at `starts` [W] that are kept, with their targets."""
    windows = np.stack([starts, starts + length], axis=-1).astype(np.float64)[:, None]  # [W, 1, 2]
    instances = np.asarray(video.segments_frame, np.float64).reshape(1, -1, 2)  # [1, G, 2]
    tioa = segments.tioa(instances, windows)  # [W, G]
    chosen = tioa >= config.min_tioa if config.window_rule == "afsd" else tioa > config.min_tioa
    chosen &= tioa > 0  # min_tioa may be 0
    if config.window_rule == "paper":
        keep = chosen.any(axis=1)
    elif config.window_rule == "afsd":
        keep = (tioa >= 1 - 1e-9).any(axis=1)
    else:
        keep = np.ones(len(starts), bool)
    starts, windows, tioa, chosen = starts[keep], windows[keep], tioa[keep], chosen[keep]
    _check_counts(video.name, starts, chosen.sum(axis=1), config.max_targets)
    cut = (np.clip(instances, windows[..., :1], windows[..., 1:]) - windows[..., :1]) / length  # [W, G, 2]

    num_windows, slots = len(starts), config.max_targets
    segments_norm = np.zeros((num_windows, slots, 2), np.float32)
    labels = np.zeros((num_windows, slots), np.int32)
    valid = np.zeros((num_windows, slots), bool)
    window, instance = np.nonzero(chosen)
    slot = (np.cumsum(chosen, axis=1) - 1)[window, instance]
    segments_norm[window, slot] = cut[window, instance]
    labels[window, slot] = video.labels[instance]
    valid[window, slot] = True

    clip_labels = np.zeros((num_windows, num_classes), np.float32)
    window, instance = np.nonzero(tioa > 0 if config.action_targets == "any" else chosen)
    clip_labels[window, video.labels[instance]] = 1
    return WindowIndex(
        video_index=np.full(num_windows, video.index, np.int32),
        start_frame=starts.astype(np.int32),
        num_frames=np.full(num_windows, min(video.num_frames, config.num_frames), np.int32),
        segments_norm=segments_norm, labels=labels, valid=valid, clip_labels=clip_labels,
    )


def _check_counts(name: str, starts: np.ndarray, counts: np.ndarray, max_targets: int) -> None:
    if len(counts) and counts.max() > max_targets:
        worst = int(counts.argmax())
        raise UserError(
            f"video '{name}': the window that starts at frame {starts[worst]} holds {counts[worst]} targets, more than "
            f"data.max_targets ({max_targets}); set data.max_targets to {counts[worst]} or more, and "
            "model.num_proposals to at least as many.")
