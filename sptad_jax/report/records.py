"""Reads what a run has left in its work folder; whatever is absent or broken becomes a sentence for the page."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from sptad_jax.files import AnyPath, read_bytes


class Instance(NamedTuple):
    """An action in a video: a ground truth (score 1) or a detection. Times in seconds, score in 0..1."""

    label: str
    start_sec: float
    end_sec: float
    score: float = 1.0


@dataclasses.dataclass
class Run:
    """Everything the page shows. Absent files leave empty containers; `notices` says in sentences what is missing."""

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    analysis: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    dataset: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: list[dict[str, float]] = dataclasses.field(default_factory=list)  # sorted by step, finite values only
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    nonfinite_steps: list[int] = dataclasses.field(default_factory=list)
    database: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the ground truth, every subset
    ground_truth: dict[str, list[Instance]] = dataclasses.field(default_factory=dict)  # of the evaluated subset
    durations_sec: dict[str, float] = dataclasses.field(default_factory=dict)
    detections: dict[str, list[Instance]] = dataclasses.field(default_factory=dict)  # best score first
    subset: str = ""
    notices: list[str] = dataclasses.field(default_factory=list)

    def option(self, group: str, field: str) -> Any:
        """An option of the run's configuration; None where it is not known."""
        fields = self.config.get(group)
        return fields.get(field) if isinstance(fields, dict) else None


def read_run(workdir: AnyPath) -> Run:
    """Reads config, metrics, ground truth, detections, results, analysis, summary; never raises for their content."""
    run = Run()
    run.config = _read_json(workdir / "config.json", run, "so the options of this run are not shown")
    run.summary = _read_json(workdir / "run.json", run, None)
    run.results = _read_json(workdir / "results.json", run, "because the final evaluation has not run yet")
    run.analysis = _read_json(workdir / "analysis.json", run, "so errors are not broken down by cause")
    _read_metrics(workdir / "metrics.jsonl", run)
    run.subset = str(run.results.get("subset", run.option("data", "test_subset")) or "")
    folder = run.option("data", "dataset_dir")
    if isinstance(folder, str) and folder:
        run.dataset = _read_json(pathlib.Path(folder) / "dataset.json", run, None)
        found = _read_json(pathlib.Path(folder) / "ground_truth.json", run, "so nothing is compared with ground truth")
        database = found.get("database")
        run.database = database if isinstance(database, dict) else {}
    run.ground_truth, run.durations_sec = ground_truth_of(run.database, run.subset)
    found = _read_json(workdir / "detections.json", run, "because no video has been searched for actions yet")
    run.detections = detections_of(found.get("results"))
    return run


def ground_truth_of(database: Any, subset: str = "") -> tuple[dict[str, list[Instance]], dict[str, float]]:
    """Instances and duration in seconds of each video of `subset` (every video when it is empty).

    `database` is that of an ActivityNet file, or a mapping video -> list of {"segment": [s, e], "label"}.
    Entries that are not of this form are left out.
    """
    instances: dict[str, list[Instance]] = {}
    durations: dict[str, float] = {}
    for video, entry in database.items() if isinstance(database, Mapping) else ():
        if isinstance(entry, Mapping):
            if subset and entry.get("subset") != subset:
                continue
            duration, annotations = _to_float(entry.get("duration")), entry.get("annotations")
            if duration is not None and duration > 0:
                durations[str(video)] = duration
        else:
            annotations = entry
        instances[str(video)] = sorted(_instances(annotations), key=lambda i: (i.start_sec, i.end_sec))
    return instances, durations


def detections_of(results: Any) -> dict[str, list[Instance]]:
    """Detections of each video, best score first; entries without a finite segment and score are left out."""
    if not isinstance(results, Mapping):
        return {}
    return {str(v): sorted(_instances(found, scored=True), key=lambda d: -d.score) for v, found in results.items()}


def _instances(entries: Any, scored: bool = False) -> list[Instance]:
    kept = []
    for entry in entries if isinstance(entries, (list, tuple)) else ():
        segment = entry.get("segment") if isinstance(entry, Mapping) else None
        if not isinstance(segment, (list, tuple)) or len(segment) != 2:
            continue
        start, end, score = *map(_to_float, segment), _to_float(entry.get("score")) if scored else 1.0
        if start is not None and end is not None and score is not None and end >= start:
            kept.append(Instance(str(entry.get("label", "")), start, end, score))
    return kept


def _to_float(value: Any) -> float | None:
    """A finite number, also one that is written as a string (as in some copies of the THUMOS14 ground truth)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if is_number(value) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """A finite int or float (an int that no float can hold is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _read_json(path: AnyPath, run: Run, consequence: str | None) -> dict[str, Any]:
    """The object in a JSON file, or {} with a notice; `consequence` None: the file may be absent silently."""
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        if consequence is not None:
            run.notices.append(f"{path.name} is not there, {consequence}.")
        return {}
    except (OSError, ValueError, RecursionError):
        run.notices.append(f"{path.name} could not be read as JSON and was left out.")
        return {}
    if not isinstance(value, dict):
        run.notices.append(f"{path.name} holds no JSON object and was left out.")
        return {}
    return value


def _read_metrics(path: AnyPath, run: Run) -> None:
    """Splits metrics.jsonl into training and evaluation lines; of a step that is logged twice the last line counts."""
    try:
        text = read_bytes(path).decode("utf-8", errors="replace")
    except OSError:
        run.notices.append("metrics.jsonl is not there, so training is not drawn.")
        return
    training: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    nonfinite: set[int] = set()
    unreadable = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unreadable += 1  # a preempted run may leave half a line
            continue
        finite = {k: float(v) for k, v in record.items() if is_number(v)} | {"step": step}
        if any(k.startswith("eval_") for k in record):
            evaluations.setdefault(step, {}).update(finite)
        if any(not k.startswith("eval_") and k not in ("step", "epoch") for k in record):
            training[step] = finite
            nonfinite.discard(step)
            if "loss" in record and "loss" not in finite:
                nonfinite.add(step)
    run.training = [training[step] for step in sorted(training)]
    run.evaluations = [evaluations[step] for step in sorted(evaluations)]
    run.nonfinite_steps = sorted(nonfinite)
    if unreadable:
        run.notices.append(f"{unreadable} line{'s' * (unreadable > 1)} of metrics.jsonl could not be read.")
