"""From the last stage's proposals to the detections of a video (paper 3.2.2 and 4.1).

Class probabilities are adjusted by the clip-level ones, segments of all windows are brought to seconds of the video,
overlapping windows may vote on one another's detections, and redundant ones, which these windows produce, are
suppressed by soft-NMS within each class.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sptad_jax.config import Config, InferenceConfig
from sptad_jax.errors import UserError
from sptad_jax.files import as_path, write_text
from sptad_jax.inference.nms import box_decay, gaussian_decay, greedy_nms
from sptad_jax.segments import tiou

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # score [n], segments_sec [n, 2], class index [n]
TIME_DECIMALS = 4  # times are rounded to 0.1 ms, far below a frame, so that files stay small; scores are not rounded


def windows_to_detections(
    windows: dict[str, np.ndarray],
    *,
    duration_sec: float,
    fps: float,
    config: Config,
    classes: tuple[str, ...],
    external: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One video's window predictions -> detections in seconds, best first (see postprocess_video)."""
    looks = 2 if config.inference.mirror else 1  # a window in a mirror is one more window: it votes for itself
    class_prob, segments_norm = (
        value.reshape(len(value) * looks, value.shape[1] // looks, value.shape[2])
        for value in (windows["class_prob"], windows["segments_norm"])
    )
    per_window = {name: windows[name] for name in ("clip_prob", "start_frame") if name in windows}
    per_look = {name: np.repeat(value, looks, axis=0) for name, value in per_window.items()}
    return postprocess_video(
        class_prob,
        segments_norm,
        per_look.get("clip_prob"),
        per_look["start_frame"] / fps,
        config.data.num_frames / fps,
        duration_sec,
        classes,
        config.inference,
        external_scores=external,
    )


def postprocess_video(
    class_prob: Any,
    segments_norm: Any,
    clip_prob: Any | None,
    window_start_sec: Any,
    window_length_sec: float,
    duration_sec: float,
    classes: Sequence[str],
    config: InferenceConfig,
    external_scores: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Detections of one video out of the proposals of its W windows.

    Args:
      class_prob: [W, N, A] class probabilities of the last stage. A window in a mirror is a window of its own.
      segments_norm: [W, N, 2] (start, end) as share of the window; what sticks out is cut off.
      clip_prob: [W, A] probabilities of the action classification head, or None where there is none.
      window_start_sec: [W] start of each window, seconds.
      window_length_sec: length of a window, seconds.
      duration_sec: length of the video, seconds; windows may reach beyond it.
      classes: A labels.
      config: the options; see `InferenceConfig`.
      external_scores: score of each label for this video, multiplied in; a label that is not named counts as 0.

    Returns: [{"label", "score", "segment": [start_sec, end_sec]}] in descending score; equal scores by start, end and
      class, so that the order of the windows does not matter. Times are rounded to `TIME_DECIMALS`.

    Raises UserError where probabilities or segments are not finite, as those of a diverged model.
    """
    score, segments_norm, starts = (np.asarray(x, np.float64) for x in (class_prob, segments_norm, window_start_sec))
    num_windows, num_proposals, num_classes = score.shape
    if num_classes != len(classes) or segments_norm.shape != (num_windows, num_proposals, 2):
        raise ValueError(f"class_prob {score.shape}, segments {segments_norm.shape}, {len(classes)} classes: disagree")
    score = adjust_scores(score, clip_prob, config.combine)
    if external_scores is not None:
        score = score * external_row(external_scores, classes)
    if not (np.isfinite(score).all() and np.isfinite(segments_norm).all()):
        raise UserError("the model's output is not finite: its weights have diverged or are damaged; take others.")

    segments_sec = _to_video(segments_norm, starts, window_length_sec, duration_sec)
    if config.vote:
        votes = window_votes(score, segments_sec, starts, window_length_sec)
        score = np.sqrt(np.multiply(score, votes, out=votes), out=votes)  # in place: long videos have many
    keep = (score >= config.min_score) & (segments_sec[..., 1] > segments_sec[..., 0])[..., None]
    window, proposal, label = np.nonzero(keep)
    score, segments_sec = score[window, proposal, label], segments_sec[window, proposal]
    score, segments_sec, label = _sorted(score, segments_sec, label)
    if config.edge_rule:
        edge = touches_overlap(segments_sec, starts, window_length_sec)
        inner = (score[~edge], segments_sec[~edge], label[~edge])
        outer = _suppress(score[edge], segments_sec[edge], label[edge], config)
        score, segments_sec, label = (np.concatenate(pair) for pair in zip(inner, outer))
    else:
        score, segments_sec, label = _suppress(score, segments_sec, label, config)
    score, segments_sec, label = _cap(*_sorted(score, segments_sec, label), config)
    return [
        {"label": classes[a], "score": value, "segment": segment}
        for a, value, segment in zip(label.tolist(), score.tolist(), segments_sec.tolist())
    ]


def adjust_scores(class_prob: np.ndarray, clip_prob: Any | None, combine: str) -> np.ndarray:
    """Class probabilities [W, N, A] adjusted by clip probabilities [W, A] (paper 3.2.2; Table 7).

    "product" multiplies, as the paper writes; "sqrt" is the geometric mean; "none", or no clip probability, changes
    nothing.
    """
    if combine == "none" or clip_prob is None:
        return class_prob
    product = class_prob * np.asarray(clip_prob, np.float64)[:, None, :]
    return np.sqrt(product) if combine == "sqrt" else product


def window_votes(
    score: np.ndarray, segments_sec: np.ndarray, window_start_sec: np.ndarray, window_length_sec: float
) -> np.ndarray:
    """What the windows that see a segment whole say of it, on average -> [W, N, A]: few windows err in the same way.

    The segment's own window says its score; another one the best of its own scores for that class, each times the
    square of the tIoU. So a segment that no other window sees whole keeps its score. As box voting (arXiv 1505.01749),
    for scores in place of positions; as in weighted boxes fusion (arXiv 1910.13302), who does not find it lowers it.

    Args: score: [W, N, A]. segments_sec: [W, N, 2] in the video. window_start_sec: [W], in any order.
    """
    num_proposals, num_classes = score.shape[1:]
    order = np.argsort(segments_sec[..., 0], axis=None, kind="stable")
    spans, owner = segments_sec.reshape(-1, 2)[order], order // num_proposals
    total, voters = score.reshape(-1, num_classes)[order], np.ones(len(spans))  # its own window's vote
    slack = 10.0**-TIME_DECIMALS  # segments are rounded, windows are not
    for window in np.argsort(window_start_sec, kind="stable"):  # the same sums in any order of distinct starts
        start = window_start_sec[window] - slack
        end = start + window_length_sec + 2 * slack
        near = np.arange(*np.searchsorted(spans[:, 0], [start, end]))
        whole = near[(spans[near, 1] <= end) & (owner[near] != window)]
        weight = tiou(spans[whole, None], segments_sec[window][None]) ** 2
        for a in range(num_classes):  # at once it would take [n, N, A] numbers
            total[whole, a] += (weight * score[window, :, a]).max(axis=1)
        voters[whole] += 1
    total /= voters[:, None]
    votes = np.empty_like(total)
    votes[order] = total
    return votes.reshape(score.shape)


def touches_overlap(segments_sec: np.ndarray, window_start_sec: np.ndarray, window_length_sec: float) -> np.ndarray:
    """Whether segments [n, 2] reach into a stretch that two adjacent windows share -> bool [n].

    As TadTR datasets/tad_eval.py:158-230, which suppresses detections there only, for within a window a set
    predictor has no duplicates. TadTR treats every shared stretch on its own and may so list a detection twice;
    here all that touch any of them are suppressed together.
    """
    starts = np.unique(window_start_sec)
    low, high = starts[1:], starts[:-1] + window_length_sec
    inside = np.minimum(segments_sec[:, 1:], high) - np.maximum(segments_sec[:, :1], low) > 0
    return inside.any(axis=1)


def load_external_scores(path: str | pathlib.Path, videos: Iterable[str]) -> dict[str, dict[str, float]]:
    """Video-level class scores of another classifier for each of `videos`: video -> label -> score.

    Videos may have ActivityNet's prefix `v_` there and not here, or the other way round.

    Reads {video: {label: score}}, or CUHK's layout for ActivityNet, {"class": [labels], "results": {video: [scores]}}
    (scores may be wrapped in a list of one row). Raises UserError naming the file and video, also for a video without
    scores: its detections would outrank all others, whose scores are products.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check inference.external_scores.") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); inference.external_scores takes a JSON file.") from None
    try:
        if isinstance(content.get("class"), list):
            rows = {video: np.asarray(row, np.float64).reshape(-1) for video, row in content["results"].items()}
            table = {video: dict(zip(content["class"], row.tolist(), strict=True)) for video, row in rows.items()}
        else:
            table = {video: {label: float(score) for label, score in row.items()} for video, row in content.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: unknown layout; give {{video: {{label: score}}}} or CUHK's class/results.") from None
    for video, row in table.items():
        if not all(np.isfinite(score) and score >= 0 for score in row.values()):
            raise UserError(f"{path}: video '{video}' has a score that is negative or not finite; correct it.")
    found = {video: next((name for name in (video, f"v_{video}", video.removeprefix("v_")) if name in table), None)
             for video in videos}
    missing = [video for video, name in found.items() if name is None]
    if missing:
        raise UserError(f"{path}: has no scores of {len(missing)} of the {len(found)} videos, '{missing[0]}' first; "
                        "add them, or leave inference.external_scores empty.")
    return {video: table[name] for video, name in found.items() if name is not None}


def write_detections(
    path: str | os.PathLike[str],
    results: Mapping[str, list[dict[str, Any]]],
    external_data: Mapping[str, Any] | None = None,
) -> None:
    """Writes {"version", "results", "external_data"} in ActivityNet's format; the file is whole or untouched.

    `results` maps a video's name to its list from `postprocess_video`. Raises UserError where `path` is not writable.
    """
    content = {"version": "VERSION 1.3", "results": dict(results), "external_data": dict(external_data or {})}
    text = json.dumps(content, allow_nan=False)
    try:
        as_path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another path.") from None


def _to_video(segments_norm: np.ndarray, starts: np.ndarray, length: float, duration: float) -> np.ndarray:
    """Clamps to the window, shifts to the video, rounds, clamps to the video. [W, N, 2] -> seconds [W, N, 2]."""
    shifted = starts[:, None, None] + np.clip(segments_norm, 0.0, 1.0) * length
    return np.clip(np.round(shifted, TIME_DECIMALS), 0.0, duration)


def external_row(external_scores: Mapping[str, float], classes: Sequence[str]) -> np.ndarray:
    """Scores [C] in the order of `classes`, 0 where a label is absent. Raises UserError where all are."""
    if not set(external_scores) & set(classes):
        raise UserError("inference.external_scores: no label of the file is a class of the data set; check its labels.")
    return np.array([external_scores.get(label, 0.0) for label in classes], np.float64)


def _sorted(score: np.ndarray, segments_sec: np.ndarray, label: np.ndarray) -> Rows:
    order = np.lexsort((label, segments_sec[:, 1], segments_sec[:, 0], -score))
    return score[order], segments_sec[order], label[order]


def _cap(score: np.ndarray, segments_sec: np.ndarray, label: np.ndarray, config: InferenceConfig) -> Rows:
    """Keeps the best of each class, then of the video. Rows come in descending score."""
    keep = np.arange(len(score))
    if config.max_per_class > 0:
        keep = keep[_rank_in_group(label) < config.max_per_class]
    if config.max_per_video > 0:
        keep = keep[: config.max_per_video]
    return score[keep], segments_sec[keep], label[keep]


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """How many earlier rows have the same group. int [n] -> int [n]."""
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank


def _suppress(score: np.ndarray, segments_sec: np.ndarray, label: np.ndarray, config: InferenceConfig) -> Rows:
    """NMS within each class, or over all of them, in one batch."""
    if config.nms == "none" or not len(score):
        return score, segments_sec, label
    if config.nms == "soft" and not config.nms_sigma > 0:
        raise UserError(f"inference.nms_sigma is {config.nms_sigma}; it must be positive.")
    soft = config.nms == "soft"
    decay = gaussian_decay(config.nms_sigma) if soft else box_decay(config.nms_tiou)
    floor = config.nms_min_score if soft else 0.0
    group = np.unique(label, return_inverse=True)[1] if config.nms_per_class else np.zeros_like(label)
    column = _rank_in_group(group)
    shape = (int(group.max()) + 1, int(column.max()) + 1)
    padded_score, padded_segments = np.zeros(shape), np.zeros((*shape, 2))
    padded_score[group, column], padded_segments[group, column] = score, segments_sec
    after = greedy_nms(padded_segments, padded_score, decay, floor)[group, column]
    kept = after > 0
    return after[kept], segments_sec[kept], label[kept]
