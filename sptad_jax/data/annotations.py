"""Ground truth in ActivityNet's JSON format, read with every row checked.

`{"database": {video: {"subset": s, "duration": seconds, "annotations": [{"segment": [s, e], "label": l}]}}}`;
times are in seconds, as numbers or as strings (the JSON that AFSD evaluates THUMOS14 with holds strings).
"""

import dataclasses
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sptad_jax.errors import UserError

AMBIGUOUS = "Ambiguous"  # label of what is neither an action nor none
DURATION_TOLERANCE_SEC = 0.05  # stated durations are rounded; an end this far beyond is clipped without a word


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One action instance: `segment_sec` is (start, end) in seconds from the first frame."""

    segment_sec: tuple[float, float]
    label: str


@dataclasses.dataclass(frozen=True)
class Video:
    """A video and its action instances; `duration_sec` is 0 where the file states none.

    `ambiguous` are stretches (start, end) in seconds that are neither an action nor none, as THUMOS14's class Ambiguous
    and, in any file, rows of that label. They are never targets.
    """

    name: str
    subset: str
    duration_sec: float
    annotations: list[Annotation]
    ambiguous: tuple[tuple[float, float], ...] = ()


def load_annotations(
    path: str | os.PathLike[str], classes: Collection[str] = ()
) -> tuple[list[Video], list[str]]:
    """Reads an ActivityNet-format file; bad rows are dropped and listed, good ones go on.

    Args:
      path: the JSON file.
      classes: the class names to expect; empty accepts every label.

    Returns:
      The videos in the file's order, and one sentence for each row or video that was dropped, clipped or doubled.

    Raises:
      UserError: the file is missing, is not JSON, or has no "database".
    """
    text = _read_text(path)
    repeated: list[str] = []

    def pairs_to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            repeated.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=pairs_to_dict)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: this is not JSON ({error}); write it in ActivityNet's format, see docs/datasets.md."
                        ) from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise UserError(f"{path}: the top level needs a 'database' that maps each video name to its subset, duration "
                        "and annotations; see docs/datasets.md.")
    exceptions = [f"{path}: {name!r} is written more than once in one object; the last one counts, delete the others."
                  for name in repeated]
    videos, more = parse_database(database, path, classes)
    return videos, exceptions + more


def parse_database(
    database: Mapping[str, Any], where: str | os.PathLike[str], classes: Collection[str] = ()
) -> tuple[list[Video], list[str]]:
    """The content of "database", read from the file `where`, to videos and sentences, as `load_annotations` does."""
    exceptions: list[str] = []
    videos = []
    for name, entry in database.items():
        video = _read_video(f"{where}: video {name!r}", name, entry, frozenset(classes), exceptions)
        if video is not None:
            videos.append(video)
    return videos, exceptions


def clip_to_duration(
    annotations: Sequence[Annotation], duration_sec: float, where: str, exceptions: list[str]
) -> list[Annotation]:
    """Cuts segments at the end of their video; one that starts there or later is dropped. Adds to `exceptions`."""
    kept = []
    for annotation in annotations:
        start, end = annotation.segment_sec
        if start >= duration_sec:
            exceptions.append(f"{where}: segment [{start:g}, {end:g}] starts after the video's end at {duration_sec:g} "
                              "s and is left out; correct the segment or the duration.")
            continue
        if end > duration_sec + DURATION_TOLERANCE_SEC:
            exceptions.append(f"{where}: segment [{start:g}, {end:g}] ends after the video's end at {duration_sec:g} s "
                              "and is cut there; correct the segment or the duration.")
        kept.append(Annotation((start, min(end, duration_sec)), annotation.label))
    return kept


def find_classes(videos: Sequence[Video]) -> tuple[str, ...]:
    """All labels in use, sorted."""
    return tuple(sorted({annotation.label for video in videos for annotation in video.annotations}))


def to_database(videos: Sequence[Video]) -> dict[str, Any]:
    """The inverse of `load_annotations`: a dict ready for JSON."""
    return {"database": {video.name: {
        "subset": video.subset,
        "duration": video.duration_sec,
        "annotations": [{"segment": list(a.segment_sec), "label": a.label} for a in video.annotations],
        **({"ambiguous": [list(pair) for pair in video.ambiguous]} if video.ambiguous else {}),
    } for video in videos}}


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; give the path of a JSON in ActivityNet's format.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file in UTF-8; save the annotations as UTF-8 JSON.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from None


def _read_video(
    where: str, name: str, entry: Any, classes: frozenset[str], exceptions: list[str]
) -> Video | None:
    """One entry of the database, or None (with a sentence added) when it cannot be used at all."""
    if not _is_text(name):
        exceptions.append(f"{where}: the name holds half a character; the video is left out, rename it.")
        return None
    subset = entry.get("subset") if isinstance(entry, dict) else None
    if not isinstance(subset, str) or not subset or not _is_text(subset):
        exceptions.append(f"{where} has no 'subset' and is left out; add one, such as \"training\".")
        return None
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/") or not name.strip():
        exceptions.append(f"{where}: the name must be a file name without '..'; the video is left out, rename it.")
        return None
    duration_sec = 0.0
    if entry.get("duration") is not None:
        duration_sec = _to_seconds(entry["duration"])
        if not duration_sec > 0:
            exceptions.append(f"{where}: 'duration' is {entry['duration']!r}, not a positive number of seconds, and is "
                              "ignored; correct it.")
            duration_sec = 0.0
    rows = entry.get("annotations", [])
    if not isinstance(rows, list):
        exceptions.append(f"{where}: 'annotations' is not a list and is ignored; write [] where there are none.")
        rows = []
    annotations: list[Annotation] = []
    ambiguous = _read_ambiguous(where, entry.get("ambiguous", []), exceptions)
    for i, row in enumerate(rows):
        annotation = _read_row(f"{where}, annotation {i}", row, classes, exceptions)
        if annotation is None:
            continue
        if annotation in annotations:
            exceptions.append(f"{where}, annotation {i} repeats an earlier one and is left out; delete it.")
            continue
        if annotation.label == AMBIGUOUS:
            ambiguous.append(annotation.segment_sec)
            continue
        annotations.append(annotation)
    if duration_sec:
        annotations = clip_to_duration(annotations, duration_sec, where, exceptions)
    return Video(name, subset, duration_sec, annotations, tuple(ambiguous))


def _read_ambiguous(where: str, rows: Any, exceptions: list[str]) -> list[tuple[float, float]]:
    """The pairs of "ambiguous" that can be used, with a sentence added for each of the others."""
    kept = []
    for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
        times = [_to_seconds(value) for value in row] if isinstance(row, list) else []
        if len(times) == 2 and 0 <= times[0] < times[1] < math.inf:
            kept.append((times[0], times[1]))
        else:
            exceptions.append(f"{where}: entry {i} of 'ambiguous' is {row!r}, not a pair [start, end] in seconds, and "
                              "is left out; correct it.")
    return kept


def _read_row(where: str, row: Any, classes: frozenset[str], exceptions: list[str]) -> Annotation | None:
    """One annotation, or None with a sentence added."""
    segment = row.get("segment") if isinstance(row, dict) else None
    label = row.get("label") if isinstance(row, dict) else None
    problem = ""
    if not isinstance(segment, list) or len(segment) != 2:
        problem = "needs a 'segment' of two times in seconds, [start, end]"
    elif not isinstance(label, str) or not label.strip():
        problem = "needs a 'label' that is a non-empty string"
    elif not _is_text(label):
        problem = f"has the label {label!a}, which holds half a character; write it as UTF-8"
    else:
        start, end = _to_seconds(segment[0]), _to_seconds(segment[1])
        if not (math.isfinite(start) and math.isfinite(end)):
            problem = f"has a segment {segment!r} that is not two numbers; write seconds"
        elif start < 0:
            problem = f"has a segment [{start:g}, {end:g}] that starts before 0; correct the start"
        elif end <= start:
            problem = f"has a segment [{start:g}, {end:g}] that ends before it starts or when it starts; correct it"
        elif classes and label not in {*classes, AMBIGUOUS}:
            problem = f"has the label '{label}', which is not among the {len(classes)} expected classes; correct " \
                      "the label or the list of classes"
    if problem:
        exceptions.append(f"{where} {problem}; the row is left out.")
        return None
    return Annotation((start, end), str(label))


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8; JSON's escapes can hold half of an emoji."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_seconds(value: Any) -> float:
    """A number, or a string that holds one; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
