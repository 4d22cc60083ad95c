"""What the page counts: detections paired with ground truth, and the curves and tables that follow from the pairs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sptad_jax.report.records import Instance
from sptad_jax.segments import tiou

PER_VIDEO = 200  # detections of one video that are counted, best first; enough for recall, and quick to pair
Videos = Mapping[str, Sequence[Instance]]


def overlaps(detections: Sequence[Instance], ground_truth: Sequence[Instance], same_class: bool) -> np.ndarray:
    """tIoU of each detection with each ground truth, [n, m] float64; 0 for other classes when `same_class`."""
    det = np.array([(d.start_sec, d.end_sec) for d in detections], np.float64).reshape(-1, 1, 2)
    gt = np.array([(g.start_sec, g.end_sec) for g in ground_truth], np.float64).reshape(1, -1, 2)
    table = np.asarray(tiou(det, gt))
    if same_class and table.size:
        table = table * np.array([[d.label == g.label for g in ground_truth] for d in detections])
    return table


def match(table: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy one-to-one pairing in the order of the rows, as the ActivityNet evaluation pairs them.

    [n, m] tIoU, rows by falling score -> int [n]: the column that each row claims (the free one of highest tIoU,
    if that is at least `threshold`), or -1.
    """
    claimed = np.full(len(table), -1)
    free = np.ones(table.shape[1], bool)
    for row in np.flatnonzero((table >= threshold).any(axis=1)) if table.size else ():
        candidates = np.where(free, table[row], -1.0)
        best = int(candidates.argmax())
        if candidates[best] >= threshold:
            claimed[row], free[best] = best, False
    return claimed


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision and recall after each of n detections by falling score, all float64 [n]; `count` ground truths."""

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    count: int

    @property
    def f1(self) -> np.ndarray:
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


def curves(ground_truth: Videos, detections: Videos, threshold: float = 0.5) -> dict[str, Curve]:
    """The pooled curve under the key "", and that of every class that has ground truth (class pairs with class)."""
    scores: dict[str, list[float]] = {}
    correct: dict[str, list[bool]] = {}
    counts: dict[str, int] = {}
    for video, truths in ground_truth.items():
        for truth in truths:
            counts[truth.label] = counts.get(truth.label, 0) + 1
        found = detections.get(video, ())[:PER_VIDEO]
        for detection, column in zip(found, match(overlaps(found, truths, same_class=True), threshold)):
            for key in ("", detection.label):
                scores.setdefault(key, []).append(detection.score)
                correct.setdefault(key, []).append(column >= 0)
    counts[""] = sum(counts.values())
    return {key: _curve(scores.get(key, []), correct.get(key, []), counts[key]) for key in sorted(counts)}


def _curve(scores: list[float], correct: list[bool], count: int) -> Curve:
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    score, true = np.array(scores, np.float64)[order], np.cumsum(np.array(correct, np.float64)[order])
    last = np.append(score[1:] != score[:-1], True) if len(score) else np.zeros(0, bool)  # equal scores enter together
    rank = np.arange(1, len(score) + 1)
    return Curve(score[last], (true / rank)[last], (true / max(count, 1))[last], count)


def operating_score(curve: Curve) -> float:
    """The score threshold with the highest F1; 0 where nothing was found."""
    return float(curve.score[curve.f1.argmax()]) if len(curve.score) else 0.0


def above(detections: Videos, threshold: float) -> dict[str, list[Instance]]:
    """The counted detections of each video with at least this score."""
    return {v: [d for d in found[:PER_VIDEO] if d.score >= threshold] for v, found in detections.items()}


def best_tious(ground_truth: Videos, kept: Videos) -> np.ndarray:
    """Highest tIoU of each kept detection with a ground truth of its class in its video (0: none), float64."""
    parts = [overlaps(kept.get(v, ()), truths, same_class=True) for v, truths in ground_truth.items()]
    return np.concatenate([np.zeros(0), *(p.max(axis=1, initial=0.0) for p in parts)])


def video_scores(ground_truth: Videos, kept: Videos) -> dict[str, float]:
    """For each video with ground truth: the mean, over its instances, of the best tIoU of a detection of the class."""
    tables = {v: overlaps(kept.get(v, ()), truths, same_class=True) for v, truths in ground_truth.items() if truths}
    return {v: float(table.max(axis=0, initial=0.0).mean()) for v, table in tables.items()}


def confusion(ground_truth: Videos, kept: Videos, classes: Sequence[str], threshold: float = 0.5) -> np.ndarray:
    """Counts int [A+1, A+1]: row = ground-truth class, column = predicted class, pairs made regardless of class.

    The last column counts missed ground truths, the last row detections on background.
    """
    index = {label: k for k, label in enumerate(classes)}
    counts = np.zeros((len(classes) + 1, len(classes) + 1), int)
    for video, truths in ground_truth.items():
        found = kept.get(video, ())
        columns = match(overlaps(found, truths, same_class=False), threshold)
        for detection, column in zip(found, columns):
            row = index[truths[column].label] if column >= 0 else -1
            counts[row, index[detection.label]] += 1
        for missed in set(range(len(truths))) - set(columns.tolist()):
            counts[index[truths[missed].label], -1] += 1
    return counts
