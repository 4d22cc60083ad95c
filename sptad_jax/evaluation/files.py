"""What the evaluators read: ground truth and detections in ActivityNet's JSON format, every row checked.

Times are seconds. Annotations with the label "Ambiguous" belong to no class: THUMOS14 marks with it what is neither an
action nor none. They are left out of the ground truth and kept apart for the protocol that heeds them.
"""

import dataclasses
import gzip
import json
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from sptad_jax.data.annotations import AMBIGUOUS
from sptad_jax.errors import UserError
from sptad_jax.files import read_bytes


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a ground truth or of detections, in file order."""

    videos: list[str]  # [n]
    labels: list[str]  # [n]
    segments_sec: np.ndarray  # [n, 2] float64 (start, end)
    scores: np.ndarray  # [n] float64; empty for a ground truth


def load_ground_truth(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads ActivityNet ground truth: {"database": {video: {"subset", "annotations": [{"segment", "label"}]}}}.

    `.json` or `.json.gz`; times may be numbers or numeric strings, as in AFSD's THUMOS14 file. The whole file is
    checked. Raises UserError naming the file, video and field.
    """
    ground_truth = _read_json(path)
    names, _ = read_ground_truth(ground_truth, source=str(path))
    read_ambiguous(ground_truth, names, source=str(path))
    return ground_truth


def load_detections(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads detections: {"results": {video: [{"label", "score", "segment": [start_sec, end_sec]}]}}.

    `.json` or `.json.gz`, checked whole. Raises UserError naming the file, video and field.
    """
    detections = _read_json(path)
    read_detections(detections, source=str(path))
    return detections


def read_ground_truth(
    ground_truth: dict[str, Any], subset: str | None = None, source: str = "ground truth"
) -> tuple[list[str], Table]:
    """Names of the videos of `subset` (None: all), and their annotations but the Ambiguous ones, in file order.

    Raises UserError naming `source`, the video and the field.
    """
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
    table = _table([(name, database[name]["annotations"]) for name in names], source, "annotation")
    kept = [i for i, label in enumerate(table.labels) if label != AMBIGUOUS]
    labels = [table.labels[i] for i in kept]
    return names, Table([table.videos[i] for i in kept], labels, table.segments_sec[kept], table.scores)


def read_ambiguous(ground_truth: dict[str, Any], names: Collection[str], source: str = "ground truth") -> Table:
    """Ambiguous segments of the videos `names`: pairs under "ambiguous", and annotations with the label "Ambiguous".

    `ground_truth` must have passed `read_ground_truth`. Raises UserError naming `source` and the video.
    """
    entries: list[tuple[str, Any]] = []
    for name in names:
        entry = ground_truth["database"][name]
        pairs = entry.get("ambiguous", [])
        if not isinstance(pairs, list):
            raise UserError(f"{source}: video '{name}': 'ambiguous' is {pairs!r}; it must be a list of [start, end].")
        rows = [{"label": AMBIGUOUS, "segment": pair} for pair in pairs]
        entries.append((name, rows + [row for row in entry["annotations"] if row["label"] == AMBIGUOUS]))
    return _table(entries, source, "ambiguous segment")


def read_detections(detections: dict[str, Any], source: str = "detections") -> Table:
    """All detections in file order. Raises UserError naming `source`, the video and the field."""
    results = _member(detections, "results", source, "detections stand under it, a list for every video")
    return _table(list(results.items()), source, "detection")


def load_names(path: str | pathlib.Path) -> list[str]:
    """Reads a JSON list of video names, such as ActivityNet's blocked videos. Raises UserError naming the file."""
    names = _read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: must be a list of video names, as in ["video_1", "video_2"].')
    return names


def leave_out(content: dict[str, Any], key: str, names: Collection[str]) -> dict[str, Any]:
    """The content of a file without the videos `names`, which stand under `key`: "database" or "results"."""
    return {**content, key: {name: value for name, value in content[key].items() if name not in names}}


def _read_json(path: str | os.PathLike[str]) -> Any:
    try:
        content = read_bytes(path)
        content = gzip.decompress(content) if os.fspath(path).endswith(".gz") else content
        return json.loads(content.decode("utf-8-sig"))  # Windows writes a mark at the beginning
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check that it is a file and whole.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); write it as docs/datasets.md says.") from None


def _member(content: Any, key: str, source: str, remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise UserError(f"{source}: the key '{key}' with an object is missing at the top; {remedy}.")
    return content[key]


def _table(entries: list[tuple[str, Any]], source: str, kind: str) -> Table:
    """Converts all rows at once; only when something is amiss are they walked one by one to name the culprit."""
    with_scores = kind == "detection"
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
        raise UserError(f"{source}: {_complaint(entries, kind)}")
    return Table([name for name, rows in entries for _ in rows], labels, times, scores)


def _complaint(entries: list[tuple[str, Any]], kind: str) -> str:
    with_scores = kind == "detection"
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
