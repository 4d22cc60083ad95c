"""What a detector gets wrong: false positives by cause, and recall and mAP by kind of action (DETAD).

Follows Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018, and their scripts
(HumamAlwassel/DETAD 24f7d95, src/). Times are in seconds, shares and mAP in 0..1. The ground truth and the detections
are those of `average_precision.evaluate`: instances of no length, or longer than their video, stay in (the scripts
drop them), and detections of unknown videos or labels are left out (there the former are background errors).

mAP_N is mAP with the precision that a class would have if it had as many instances as the average class, N:
recall N / (recall N + false positives). So rare and frequent classes, or kinds of action, can be compared.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sptad_jax.errors import UserError
from sptad_jax.evaluation.average_precision import (
    candidate_pairs,
    check_thresholds,
    choose_labels,
    match,
    rank_by_score,
    select,
)
from sptad_jax.evaluation.files import Table, read_detections, read_ground_truth
from sptad_jax.evaluation.proposals import average_recall

TYPES = ("true_positive", "double_detection", "wrong_label", "localisation", "confusion", "background")
BUCKETS = ("XS", "S", "M", "L", "XL")
# Upper edges of all buckets but the last, which belong to the bucket: for ActivityNet, and for THUMOS14
# (false_positive_analysis.py main()). Length in seconds, coverage as a share of the video, instances of the video.
EDGES = {
    "coverage": ((0.2, 0.4, 0.6, 0.8), (0.02, 0.04, 0.06, 0.08)),
    "length": ((30.0, 60.0, 120.0, 180.0), (3.0, 6.0, 12.0, 18.0)),
    "num_instances": ((1.0, 4.0, 8.0), (1.0, 40.0, 80.0)),
}
_BINS = 10  # of the false-positive profile, each as long as the ground truth
_MIN_TIOU = 0.1  # below it a detection lies on the background
_MIN_PRECISION = 0.05  # mAP_N's precision that a detection needs to count for recall


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Ground truth and detections, the latter by class and best score first."""

    gt_class: np.ndarray  # [g] int
    det_class: np.ndarray  # [n] int
    claimed: np.ndarray  # [n, k] int: instance that a detection takes at threshold k, or -1; see `match`
    nearest: np.ndarray  # [n] int: instance of any class with the largest tIoU (the first of equals)
    tiou: np.ndarray  # [n] float64: that tIoU; 0 where it is below both 0.1 and the thresholds


def analyse(
    ground_truth: dict[str, Any], detections: dict[str, Any], tious: Sequence[float], subset: str | None = None
) -> dict[str, Any]:
    """The content of analysis.json.

    Args:
      ground_truth, detections, subset: as in `average_precision.evaluate`.
      tious: distinct thresholds in (0, 1]; "average" below is the plain mean over them.

    Returns:
      "map_n": {tIoU or "average": mAP_N of all detections};
      "proposals": see `proposals.average_recall`;
      "errors": see `false_positives`;
      "recall": {tIoU or "average": share of instances found}, see `find_instances`;
      "characteristics": {"coverage", "length", "num_instances": list of buckets}, each bucket with "name",
        "above" and "up_to" (its edges; None: open), "count", "map_n" and "recall"; empty buckets are left out, and
        so is "coverage" where a video has no "duration". See `bucket_map_n` and `choose_edges`.

    Raises UserError where nothing is annotated, or where a duration is no positive number.
    """
    videos, truth = read_ground_truth(ground_truth, subset)
    pairs = pair(videos, choose_labels(truth, subset), truth, read_detections(detections), check_thresholds(tious))
    found = find_instances(pairs)
    characteristics = {}
    for name, values in _characteristics(ground_truth, truth).items():
        edges = choose_edges(name, values)
        where = np.searchsorted(edges, values, side="left")
        characteristics[name] = [
            {
                "name": BUCKETS[b],
                "above": edges[b - 1] if b else None,
                "up_to": edges[b] if b < len(edges) else None,
                "count": int((where == b).sum()),
                "map_n": _by_tiou(tious, bucket_map_n(pairs, where == b)),
                "recall": _by_tiou(tious, found[where == b].mean(axis=0)),
            }
            for b in np.unique(where).tolist()
        ]
    return {
        "subset": subset,
        "num_ground_truth": len(pairs.gt_class),
        "num_detections": len(pairs.det_class),
        "map_n": _by_tiou(tious, bucket_map_n(pairs, np.ones(len(pairs.gt_class), bool))),
        "errors": false_positives(pairs, tious),
        "recall": _by_tiou(tious, found.mean(axis=0)),
        "characteristics": characteristics,
        "proposals": average_recall(ground_truth, detections, subset),
    }


def pair(videos: list[str], labels: list[str], truth: Table, found: Table, thresholds: np.ndarray) -> Pairs:
    """Pairs the detections of these videos and labels with the instances, at every threshold on its own."""
    gt_class, gt_video, gt_se, _ = select(truth, videos, labels)
    det_class, det_video, det_se, det_score = select(found, videos, labels)
    order = rank_by_score(det_class, det_score)
    det_class, det_video, det_se = det_class[order], det_video[order], det_se[order]
    gt_group, det_group = gt_video * len(labels) + gt_class, det_video * len(labels) + det_class
    claimed = match(gt_group, gt_se, det_group, det_se, thresholds)
    # of the instances of any class
    det, gt, tiou = candidate_pairs(gt_video, gt_se, det_video, det_se, min(_MIN_TIOU, float(thresholds.min())))
    det, first = np.unique(det, return_index=True)
    nearest, best = np.zeros(len(order), np.int64), np.zeros(len(order))
    nearest[det], best[det] = gt[first], tiou[first]
    return Pairs(gt_class, det_class, claimed, nearest, best)


def classify(pairs: Pairs, thresholds: np.ndarray) -> np.ndarray:
    """The cause of each detection at each threshold, as an index into `TYPES` (analyze_fp_error_types). int [n, k].

    One that claims an instance is a true positive. Otherwise its nearest instance of any class decides: at a tIoU of
    the threshold or more a double detection (same class) or a wrong label (another); at 0.1 or more a localisation
    error (same class) or a confusion (another); below that background.
    """
    same = (pairs.gt_class[pairs.nearest] == pairs.det_class)[:, None]
    tiou = pairs.tiou[:, None]
    near, far = np.where(same, 1, 2), np.where(same, 3, 4)
    missed = np.where(tiou >= thresholds, near, np.where(tiou >= _MIN_TIOU, far, 5))
    return np.where(pairs.claimed >= 0, 0, missed)


def false_positives(pairs: Pairs, tious: Sequence[float]) -> dict[str, Any]:
    """The false-positive profile, and what mAP_N would gain if one kind of error were absent.

    Of a class with G instances its 10 G best detections are examined. Bin b of the profile holds those of rank
    (b - 1) G to b G in every class; it is left out where nobody has that many (false_positive_analysis.py
    split_predictions_by_score_ranges). To remove an error is to remove the detections that make it, the pairs kept
    (action_detector_diagnosis.py diagnose).

    Returns: "num_detections" [bins]; "profile", {tIoU or "average": {type: shares [bins] of these}}; "map_n",
    {tIoU or "average": mAP_N of the examined detections}; "gain", {tIoU or "average": {error: difference}}.
    """
    rank = np.arange(len(pairs.det_class)) - np.searchsorted(pairs.det_class, pairs.det_class)
    bins = rank // np.bincount(pairs.gt_class)[pairs.det_class]
    types = classify(pairs, np.asarray(tious, np.float64))
    occupied = [b for b in range(_BINS) if (bins == b).any()]
    share = np.array([[(types[bins == b] == t).mean(axis=0) for b in occupied] for t in range(len(TYPES))])
    share = share.reshape(len(TYPES), len(occupied), len(tious))
    examined = (bins < _BINS)[:, None]
    base = _map_n(pairs, examined & (types == 0), examined & (types != 0))
    gain = np.array([
        _map_n(pairs, examined & (types == 0), examined & (types != 0) & (types != error)) - base
        for error in range(1, len(TYPES))
    ])  # fmt: skip
    return {
        "num_detections": [int((bins == b).sum()) for b in occupied],
        "map_n": _by_tiou(tious, base),
        "profile": {
            key: dict(zip(TYPES, rows.tolist()))
            for key, rows in zip(_keys(tious), [*np.moveaxis(share, 2, 0), share.mean(axis=2)])
        },
        "gain": {
            key: dict(zip(TYPES[1:], row.tolist())) for key, row in zip(_keys(tious), [*gain.T, gain.mean(axis=1)])
        },
    }


def bucket_map_n(pairs: Pairs, members: np.ndarray) -> np.ndarray:
    """mAP_N over the instances of a bucket (sensitivity_analysis.py). `members` bool [g]. Returns float64 [k].

    Detections that claim an instance outside of the bucket at any threshold are taken out, as in the script; all
    others that claim none are false positives. N is the average over the whole ground truth, and the mean is over the
    classes that have an instance in the bucket.
    """
    outside = ((pairs.claimed >= 0) & ~members[pairs.claimed]).any(axis=1, keepdims=True)
    return _map_n(pairs, ~outside & (pairs.claimed >= 0), ~outside & (pairs.claimed < 0), members)


def find_instances(pairs: Pairs) -> np.ndarray:
    """Which instances are found at each threshold: one minus DETAD's false negatives. bool [g, k].

    An instance is found by the detection that claims it, if mAP_N's precision at that one's rank is above 0.05: recall
    by ever more and ever poorer detections is worth nothing (false_negative_analysis.py, ActionDetectorDiagnosis with
    minimum_normalized_precision_threshold_for_detection=0.05).
    """
    found = np.zeros((len(pairs.gt_class), pairs.claimed.shape[1]), bool)
    hits = pairs.claimed >= 0
    for rows, sizes in _classes(pairs, np.ones(len(pairs.gt_class), bool)):
        _, precision = _curve(hits[rows], ~hits[rows], *sizes)
        det, k = np.nonzero(hits[rows] & (precision > _MIN_PRECISION))
        found[pairs.claimed[rows][det, k], k] = True
    return found


def choose_edges(characteristic: str, values: np.ndarray) -> tuple[float, ...]:
    """DETAD's edges for ActivityNet, or for THUMOS14 where their fullest bucket holds fewer of the values [g]."""

    def fullest(edges: tuple[float, ...]) -> int:
        return int(np.bincount(np.searchsorted(edges, values, side="left")).max())

    return min(EDGES[characteristic], key=fullest)


def _map_n(pairs: Pairs, hits: np.ndarray, misses: np.ndarray, members: np.ndarray | None = None) -> np.ndarray:
    """Mean over classes of the area under the interpolated curve of recall and normalised precision. [k]."""
    members = np.ones(len(pairs.gt_class), bool) if members is None else members
    areas = []
    for rows, sizes in _classes(pairs, members):
        recall, precision = _curve(hits[rows], misses[rows], *sizes)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        areas.append((np.diff(recall, axis=0, prepend=0.0) * envelope).sum(axis=0))
    return np.mean(areas, axis=0)


def _classes(pairs: Pairs, members: np.ndarray) -> list[tuple[slice, tuple[int, float]]]:
    """Rows of detections, number of members, and N of every class that has a member."""
    total = np.bincount(pairs.gt_class)
    number = np.bincount(pairs.gt_class[members], minlength=len(total))
    bounds = np.searchsorted(pairs.det_class, np.arange(len(total) + 1))
    average = len(pairs.gt_class) / len(total)
    return [(slice(bounds[c], bounds[c + 1]), (int(number[c]), average)) for c in np.flatnonzero(number)]


def _curve(hits: np.ndarray, misses: np.ndarray, number: int, average: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall and normalised precision after each detection, [n, k] each; a detection may be neither hit nor miss."""
    recall = hits.cumsum(axis=0) / number
    scaled = recall * average
    total = scaled + misses.cumsum(axis=0)
    return recall, np.divide(scaled, total, out=np.zeros_like(scaled), where=total > 0)


def _characteristics(ground_truth: dict[str, Any], truth: Table) -> dict[str, np.ndarray]:
    """Share of the video, seconds, and number of instances (of any class) in the video, of every instance. [g] each."""
    length = truth.segments_sec[:, 1] - truth.segments_sec[:, 0]
    counts = collections.Counter(truth.videos)
    values = {"length": length, "num_instances": np.array([counts[name] for name in truth.videos], np.float64)}
    seconds = np.array([_duration(ground_truth, name) for name in truth.videos])
    return values if np.isnan(seconds).any() else {"coverage": length / seconds} | values


def _duration(ground_truth: dict[str, Any], video: str) -> float:
    """Seconds; NaN where the ground truth has none."""
    value = ground_truth["database"][video].get("duration")
    if value is None:
        return float("nan")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"ground truth: video '{video}': 'duration' is {value!r}; give positive seconds, or remove it.")
    return seconds


def _keys(tious: Sequence[float]) -> list[str]:
    return [*(f"{t:g}" for t in tious), "average"]


def _by_tiou(tious: Sequence[float], values: np.ndarray) -> dict[str, float]:
    return dict(zip(_keys(tious), [*map(float, values), float(values.mean())]))
