"""Mean average precision by the ActivityNet protocol (paper 4.1; ActivityNet Evaluation/eval_detection.py).

Detections of a class are walked in descending score; each takes the still free ground truth of its video and class with
the largest tIoU, if that reaches the threshold, and is a true positive; otherwise a false positive. AP is the area
under the interpolated precision-recall curve; mAP is its plain mean over the classes of the ground truth.
Times are in seconds, tIoU is continuous, and every reported value lies in 0..1.
"""

import dataclasses
import gzip
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sptad_jax import segments
from sptad_jax.errors import UserError

_CHUNK = 50_000  # detections whose tIoUs are held at once: bounds memory on ActivityNet-sized files


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a ground truth or of detections, in file order."""

    videos: list[str]  # [n]
    labels: list[str]  # [n]
    segments_sec: np.ndarray  # [n, 2] float64 (start, end)
    scores: np.ndarray  # [n] float64; empty for a ground truth


def load_ground_truth(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads ActivityNet ground truth: {"database": {video: {"subset", "annotations": [{"segment", "label"}]}}}.

    `.json` or `.json.gz`; times may be numbers or numeric strings, as in AFSD's THUMOS14 file. The whole file is
    checked. Raises UserError naming the file, video and field.
    """
    ground_truth = _read_json(path)
    read_ground_truth(ground_truth, source=str(path))
    return ground_truth


def load_detections(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads detections: {"results": {video: [{"label", "score", "segment": [start_sec, end_sec]}]}}.

    `.json` or `.json.gz`, checked whole. Raises UserError naming the file, video and field.
    """
    detections = _read_json(path)
    read_detections(detections, source=str(path))
    return detections


def read_ground_truth(
    ground_truth: dict[str, Any], subset: str | None = None, source: str = "ground truth"
) -> tuple[list[str], Table]:
    """Names of the videos of `subset` (None: all), and their annotations. Raises UserError naming `source`."""
    database = _member(ground_truth, "database", source, "the ActivityNet format has video entries under it")
    for name, entry in database.items():
        if not isinstance(entry, dict) or "annotations" not in entry:
            raise UserError(f"{source}: video '{name}' has no field 'annotations'; give it a list, empty if need be.")
        if subset is not None and not isinstance(entry.get("subset"), str):
            raise UserError(f"{source}: video '{name}' has no field 'subset'; add it, or evaluate without a subset.")
    names = [name for name, entry in database.items() if subset is None or entry["subset"] == subset]
    if subset is not None and not names:
        known = ", ".join(sorted({entry["subset"] for entry in database.values()})) or "none"
        raise UserError(f"{source}: no video belongs to subset '{subset}'; the file has: {known}.")
    return names, _table([(name, database[name]["annotations"]) for name in names], source, with_scores=False)


def read_detections(detections: dict[str, Any], source: str = "detections") -> Table:
    """All detections in file order. Raises UserError naming `source`, the video and the field."""
    results = _member(detections, "results", source, "detections stand under it, a list for every video")
    return _table(list(results.items()), source, with_scores=True)


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
      ground_truth: parsed ActivityNet JSON, see `load_ground_truth`.
      detections: parsed detections, see `load_detections`.
      tious: thresholds in (0, 1]; the average is taken over exactly these.
      subset: videos to evaluate on; None takes all.
      classes: labels to evaluate on; None takes every label of the subset.
      official_order: break ties as the official script does (NumPy's default sort, reversed, which is not stable)
        instead of by file order.

    Detections of other videos or labels are left out and counted in `num_ignored_detections`. (The official script
    counts a detection in an unknown video as false and stops at an unknown label; AFSD drops both, as here.)
    Segments of no length have tIoU 0 with everything.
    """
    thresholds = np.asarray(tious, np.float64)
    keys = [f"{t:g}" for t in thresholds]
    if not keys or len(set(keys)) < len(keys) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise UserError(f"tIoU thresholds {list(tious)} must be distinct numbers in (0, 1].")
    videos, truth = read_ground_truth(ground_truth, subset)
    labels = sorted(set(truth.labels) if classes is None else set(classes))
    absent = set(labels) - set(truth.labels)
    if absent or not labels:
        what = f"instance of {', '.join(sorted(absent))}" if absent else "annotation"
        raise UserError(f"ground truth: there is no {what} in subset '{subset or 'all'}', so AP is undefined there.")

    video_of = {name: i for i, name in enumerate(videos)}
    class_of = {label: i for i, label in enumerate(labels)}
    gt_class, gt_video, gt_se, _ = _select(truth, video_of, class_of)
    found = read_detections(detections)
    det_class, det_video, det_se, det_score = _select(found, video_of, class_of)
    order = rank_by_score(det_class, det_score, official_order)
    det_class = det_class[order]
    gt_group, det_group = gt_video * len(labels) + gt_class, det_video[order] * len(labels) + det_class
    hits = match(gt_group, gt_se, det_group, det_se[order], thresholds, official_order)
    num_gt = np.bincount(gt_class, minlength=len(labels))
    bounds = np.searchsorted(det_class, np.arange(len(labels) + 1))
    ap = np.stack([average_precision(hits[bounds[c] : bounds[c + 1]], int(num_gt[c])) for c in range(len(labels))])
    per_class = {
        label: {**dict(zip(keys, map(float, row))), "average": float(row.mean())} for label, row in zip(labels, ap)
    }
    return {
        "protocol": "activitynet",
        "subset": subset,
        "num_videos": len(videos),
        "num_ground_truth": len(gt_class),
        "num_detections": len(det_class),
        "num_ignored_detections": len(found.labels) - len(det_class),
        "map": dict(zip(keys, map(float, ap.mean(axis=0)))),
        "average_map": float(ap.mean(axis=0).mean()),
        "per_class": per_class,
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
    """True positives of ranked detections: greedy one-to-one matching at every threshold on its own.

    Args:
      gt_group: [g] integer that names video and class; a detection sees the ground truth of its own group only.
      gt_se: [g, 2] (start, end).
      det_group: [n], detections in the order in which they may choose within a group.
      det_se: [n, 2] (start, end), in the unit of `gt_se`.
      thresholds: [k] smallest tIoU of a match.

    Returns: bool [n, k].
    """
    det, gt, tiou = _candidate_pairs(gt_group, gt_se, det_group, det_se, float(thresholds.min()), official_order)
    hits = np.zeros((len(det_group), len(thresholds)), bool)
    for k, threshold in enumerate(thresholds):
        keep = tiou >= threshold
        # What a detection gets depends on all before it; few pairs remain, so a plain loop is the fast way.
        taken, hit = bytearray(len(gt_group)), bytearray(len(det_group))
        for d, g in zip(det[keep].tolist(), gt[keep].tolist()):
            if not hit[d] and not taken[g]:
                hit[d] = taken[g] = 1
        hits[:, k] = np.frombuffer(hit, bool)
    return hits


def average_precision(hits: np.ndarray, num_ground_truth: int) -> np.ndarray:
    """Area under the interpolated precision-recall curve (ActivityNet Evaluation/utils.py:14-23).

    `hits` is bool [n, k]: true positives in descending score, for k thresholds; `num_ground_truth` is positive.
    Returns float64 [k]; 0 where there is no detection.
    """
    true_positives = np.cumsum(hits, axis=0, dtype=np.float64)
    precision = true_positives / np.arange(1, len(hits) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (np.diff(true_positives / num_ground_truth, axis=0, prepend=0.0) * envelope).sum(axis=0)


def format_row(results: dict[str, Any]) -> str:
    """The row of the paper's tables in percent, under its heading: every tIoU and "Avg".

    With ActivityNet's ten thresholds the columns are those of Table 2: 0.5, 0.75, 0.95 and the average of all ten.
    """
    values = results["map"]
    table_2 = ("0.5", "0.75", "0.95")
    columns = table_2 if len(values) == 10 and set(table_2) <= set(values) else tuple(values)
    cells = [(key, values[key]) for key in columns] + [("Avg", results["average_map"])]
    return " ".join(f"{key:>5}" for key, _ in cells) + "\n" + " ".join(f"{100 * value:5.1f}" for _, value in cells)


def _candidate_pairs(
    gt_group: np.ndarray, gt_se: np.ndarray, det_group: np.ndarray, det_se: np.ndarray,
    min_tiou: float, official_order: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Pairs of one group with tIoU >= min_tiou: detection, ground truth and tIoU, in the order of the choice."""
    by_group = np.argsort(gt_group, kind="stable")
    sorted_group = gt_group[by_group]
    chunks = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    for begin in range(0, len(det_group), _CHUNK):
        group = det_group[begin : begin + _CHUNK]
        first = np.searchsorted(sorted_group, group, "left")
        count = np.searchsorted(sorted_group, group, "right") - first
        offset = np.cumsum(count) - count
        det = begin + np.repeat(np.arange(len(group)), count)
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


def _select(table: Table, video_of: dict[str, int], class_of: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Class, video, segment and score of the rows whose video and label are known."""
    video = np.fromiter((video_of.get(name, -1) for name in table.videos), np.int64, len(table.videos))
    label = np.fromiter((class_of.get(name, -1) for name in table.labels), np.int64, len(table.labels))
    known = (video >= 0) & (label >= 0)
    scores = table.scores[known] if len(table.scores) else table.scores
    return label[known], video[known], table.segments_sec[known], scores


def _read_json(path: str | pathlib.Path) -> Any:
    path = pathlib.Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check that it is a file and whole.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give a JSON file in the ActivityNet format.") from None


def _member(content: Any, key: str, source: str, remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise UserError(f"{source}: the key '{key}' with an object is missing at the top; {remedy}.")
    return content[key]


def _table(entries: list[tuple[str, Any]], source: str, with_scores: bool) -> Table:
    """Converts all rows at once; only when something is amiss are they walked one by one to name the culprit."""
    try:
        items = [item for _, rows in entries for item in rows]
        labels = [item["label"] for item in items]
        times = np.array([item["segment"] for item in items] or np.zeros((0, 2)), np.float64)
        scores = np.array([item["score"] for item in items] if with_scores else [], np.float64)
        fine = times.shape == (len(items), 2) and scores.ndim == 1 and all(type(label) is str for label in labels)
        fine = fine and bool(np.isfinite(times).all() and np.isfinite(scores).all())
        fine = fine and bool((times[:, 0] <= times[:, 1]).all())
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        fine = False
    if not fine:
        raise UserError(f"{source}: {_complaint(entries, with_scores)}")
    return Table([name for name, rows in entries for _ in rows], labels, times, scores)


def _complaint(entries: list[tuple[str, Any]], with_scores: bool) -> str:
    kind = "detection" if with_scores else "annotation"
    for name, rows in entries:
        if not isinstance(rows, list):
            return f"video '{name}': expected a list of {kind}s, found {type(rows).__name__}."
        for index, row in enumerate(rows):
            at = f"video '{name}', {kind} {index}"
            for field in ("label", "segment", "score") if with_scores else ("label", "segment"):
                if not isinstance(row, dict) or field not in row:
                    return f"{at}: the field '{field}' is missing; add it."
            if not isinstance(row["label"], str):
                return f"{at}: 'label' is {row['label']!r}; it must be a string."
            if with_scores and not _is_number(row["score"]):
                return f"{at}: 'score' is {row['score']!r}; it must be a finite number."
            times = row["segment"]
            if not isinstance(times, list | tuple) or len(times) != 2 or not all(map(_is_number, times)):
                return f"{at}: 'segment' is {times!r}; it must be [start, end], two finite numbers in seconds."
            if float(times[1]) < float(times[0]):
                return f"{at}: 'segment' is {times!r}; its end lies before its start, swap or remove them."
    return "a value has an unexpected type; compare the file with the format in docs/datasets.md."


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str | int | float) and math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False
