"""Mean average precision by the ActivityNet protocol (paper 4.1; ActivityNet Evaluation/eval_detection.py).

Detections of a class are walked in descending score; each takes the still free ground truth of its video and class with
the largest tIoU, if that reaches the threshold, and is a true positive; otherwise a false positive. AP is the area
under the interpolated precision-recall curve; mAP is its plain mean over the classes of the ground truth.
Times are in seconds, tIoU is continuous, and every reported value lies in 0..1.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sptad_jax import segments
from sptad_jax.errors import UserError
from sptad_jax.evaluation.files import Table, read_detections, read_ground_truth

_CHUNK = 500_000  # pairs whose tIoUs are held at once: bounds memory on ActivityNet-sized files


def evaluate(
    ground_truth: dict[str, Any],
    detections: dict[str, Any],
    tious: Sequence[float],
    subset: str | None = None,
    classes: Iterable[str] | None = None,
    official_order: bool = False,
) -> dict[str, Any]:
    """mAP at every threshold, per class and overall, as the content of results.json.

    Args:
      ground_truth: parsed ActivityNet JSON, see `files.load_ground_truth`.
      detections: parsed detections, see `files.load_detections`.
      tious: thresholds in (0, 1]; the average is taken over exactly these.
      subset: videos to evaluate on; None takes all.
      classes: labels to evaluate on; None takes every label of the subset.
      official_order: break ties as the official script does (NumPy's default sort, reversed, which is not stable)
        instead of by file order.

    Detections of other videos or labels are left out and counted in `num_ignored_detections`. (The official script
    counts a detection in an unknown video as false and stops at an unknown label; AFSD drops both, as here.)
    Segments of no length have tIoU 0 with everything.
    """
    thresholds = check_thresholds(tious)
    videos, truth = read_ground_truth(ground_truth, subset)
    labels = choose_labels(truth, subset, classes)
    gt_class, gt_video, gt_se, _ = select(truth, videos, labels)
    found = read_detections(detections)
    det_class, det_video, det_se, det_score = select(found, videos, labels)
    order = rank_by_score(det_class, det_score, official_order)
    det_class = det_class[order]
    gt_group, det_group = gt_video * len(labels) + gt_class, det_video[order] * len(labels) + det_class
    hits = match(gt_group, gt_se, det_group, det_se[order], thresholds, official_order) >= 0
    num_gt = np.bincount(gt_class, minlength=len(labels))
    bounds = np.searchsorted(det_class, np.arange(len(labels) + 1))
    ap = np.stack([average_precision(hits[bounds[c] : bounds[c + 1]], int(num_gt[c])) for c in range(len(labels))])
    return summarise(
        "activitynet", subset, labels, thresholds, ap, num_videos=len(videos), num_ground_truth=len(gt_class),
        num_detections=len(det_class), num_ignored_detections=len(found.labels) - len(det_class),
    )  # fmt: skip


def check_thresholds(tious: Sequence[float]) -> np.ndarray:
    """float64 [k]. Raises UserError unless they are distinct numbers in (0, 1]."""
    thresholds = np.asarray(tious, np.float64)
    keys = {f"{t:g}" for t in thresholds}
    if not keys or len(keys) < len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise UserError(f"tIoU thresholds {list(tious)} must be distinct numbers in (0, 1].")
    return thresholds


def choose_labels(truth: Table, subset: str | None, classes: Iterable[str] | None = None) -> list[str]:
    """`classes`, or all labels of `truth`, sorted. Raises UserError where one of them, or all, have no instance."""
    labels = sorted(set(truth.labels) if classes is None else set(classes))
    absent = set(labels) - set(truth.labels)
    if absent or not labels:
        what = f"instance of {', '.join(sorted(absent))}" if absent else "annotation"
        raise UserError(f"ground truth: there is no {what} in subset '{subset or 'all'}', so AP is undefined there.")
    return labels


def summarise(
    protocol: str, subset: str | None, labels: Sequence[str], thresholds: np.ndarray, ap: np.ndarray, **counts: int
) -> dict[str, Any]:
    """The content of results.json, from the AP of each label and threshold, [c, k] in 0..1."""
    keys = [f"{t:g}" for t in thresholds]
    return {
        "protocol": protocol,
        "subset": subset,
        **counts,
        "map": dict(zip(keys, map(float, ap.mean(axis=0)))),
        "average_map": float(ap.mean(axis=0).mean()),
        "per_class": {
            label: {**dict(zip(keys, map(float, row))), "average": float(row.mean())} for label, row in zip(labels, ap)
        },
    }


def rank_by_score(classes: np.ndarray, scores: np.ndarray, official_order: bool = False) -> np.ndarray:
    """Order [n] that sorts detections by class, then by descending score; ties keep their order unless official."""
    if not official_order:
        return np.lexsort((-scores, classes))
    parts = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    return np.concatenate([part[scores[part].argsort()[::-1]] for part in parts]) if parts else np.zeros(0, np.intp)


def match(
    gt_group: np.ndarray, gt_se: np.ndarray, det_group: np.ndarray, det_se: np.ndarray,
    thresholds: np.ndarray, official_order: bool = False,
) -> np.ndarray:  # fmt: skip
    """Greedy one-to-one matching of ranked detections, at every threshold on its own.

    Args:
      gt_group: [g] integer that names video and class; a detection sees the ground truth of its own group only.
      gt_se: [g, 2] (start, end).
      det_group: [n], detections in the order in which they may choose within a group.
      det_se: [n, 2] (start, end), in the unit of `gt_se`.
      thresholds: [k] smallest tIoU of a match.

    Returns: int [n, k], the ground truth that each detection takes, or -1.
    """
    det, gt, tiou = candidate_pairs(gt_group, gt_se, det_group, det_se, float(thresholds.min()), official_order)
    claimed = np.full((len(det_group), len(thresholds)), -1)
    for k, threshold in enumerate(thresholds):
        keep = tiou >= threshold
        # What a detection gets depends on all before it; few pairs remain, so a plain loop is the fast way.
        taken, hit = bytearray(len(gt_group)), bytearray(len(det_group))
        for d, g in zip(det[keep].tolist(), gt[keep].tolist()):
            if not hit[d] and not taken[g]:
                hit[d] = taken[g] = 1
                claimed[d, k] = g
    return claimed


def average_precision(hits: np.ndarray, num_ground_truth: int) -> np.ndarray:
    """Area under the interpolated precision-recall curve (ActivityNet Evaluation/utils.py:14-23).

    `hits` is bool [n, k]: true positives in descending score, for k thresholds; `num_ground_truth` is positive.
    Returns float64 [k]; 0 where there is no detection.
    """
    true_positives = np.cumsum(hits, axis=0, dtype=np.float64)
    precision = true_positives / np.arange(1, len(hits) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (np.diff(true_positives / num_ground_truth, axis=0, prepend=0.0) * envelope).sum(axis=0)


def format_row(results: dict[str, Any], per_class: bool = False) -> str:
    """The row of the paper's tables in percent, under its heading: every tIoU and "Avg".

    With ActivityNet's ten thresholds the columns are those of Table 2: 0.5, 0.75, 0.95 and the average of all ten.
    `per_class` puts a line for each class above it, and names before the lines.
    """
    values = results["map"]
    table_2 = ("0.5", "0.75", "0.95")
    columns = table_2 if len(values) == 10 and set(table_2) <= set(values) else tuple(values)
    rows = list(results["per_class"].items()) if per_class else []
    rows.append(("mAP", {**values, "average": results["average_map"]}))
    width = max(len(name) for name, _ in rows) + 1 if per_class else 0
    lines = [" " * width + " ".join(f"{key:>5}" for key in (*columns, "Avg"))]
    for name, row in rows:
        cells = " ".join(f"{100 * row[key]:5.1f}" for key in (*columns, "average"))
        lines.append(f"{name:<{width}}{cells}" if per_class else cells)
    return "\n".join(lines)


def candidate_pairs(
    gt_group: np.ndarray, gt_se: np.ndarray, det_group: np.ndarray, det_se: np.ndarray,
    min_tiou: float, official_order: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Pairs of one group with tIoU >= min_tiou: detection, ground truth and tIoU, in the order of the choice.

    Detections come in their order, and for each the ground truth by falling tIoU, ties in its order; see `match`.
    """
    by_group = np.argsort(gt_group, kind="stable")
    sorted_group = gt_group[by_group]
    chunks = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    first_of = np.searchsorted(sorted_group, det_group, "left")
    count_of = np.searchsorted(sorted_group, det_group, "right") - first_of
    inner = np.searchsorted(np.cumsum(count_of), np.arange(_CHUNK, count_of.sum(), _CHUNK), "right")
    for begin, end in itertools.pairwise(np.unique([0, *inner, len(det_group)]).tolist()):
        first, count = first_of[begin:end], count_of[begin:end]
        offset = np.cumsum(count) - count
        det = np.repeat(np.arange(begin, end), count)
        gt = by_group[np.arange(count.sum()) + np.repeat(first - offset, count)]
        tiou = segments.tiou(gt_se[gt], det_se[det])
        preference = -tiou
        if official_order:
            for low, n in zip(offset[count > 0].tolist(), count[count > 0].tolist()):
                preference[low + tiou[low : low + n].argsort()[::-1]] = np.arange(n)
        keep = np.flatnonzero(tiou >= min_tiou)
        keep = keep[np.lexsort((preference[keep], det[keep]))]
        chunks.append((det[keep], gt[keep], tiou[keep]))
    det, gt, tiou = (np.concatenate(parts) for parts in zip(*chunks))
    return det, gt, tiou


def select(table: Table, videos: Sequence[str], labels: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Class, video (as positions in `labels` and `videos`), segment and score of the rows that are in both lists."""
    video_of = {name: i for i, name in enumerate(videos)}
    class_of = {label: i for i, label in enumerate(labels)}
    video = np.fromiter((video_of.get(name, -1) for name in table.videos), np.int64, len(table.videos))
    label = np.fromiter((class_of.get(name, -1) for name in table.labels), np.int64, len(table.labels))
    known = (video >= 0) & (label >= 0)
    scores = table.scores[known] if len(table.scores) else table.scores
    return label[known], video[known], table.segments_sec[known], scores
