"""THUMOS14's annotation files: the official text files, AFSD's tables, and AFSD's tables of video lengths."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

from data_prep.counts import Length
from sptad_jax.data.annotations import AMBIGUOUS
from sptad_jax.errors import UserError

SUBSETS = {"validation": "val", "test": "test"}  # and the word for each in file names
FPS = 10.0  # AFSD's sampled frames a second, of which sample_count is the number
CLASSES = (
    "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault",
    "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of an annotation file; `frames` are AFSD's frame columns, as sampled frames."""

    video: str
    label: str
    segment_sec: tuple[float, float]
    frames: tuple[float, float] | None = None


def find_files(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files of that name in the one folder that has some, the shallowest and first by name; sorted."""
    for below in ("", "*/", "*/*/"):
        found = sorted(path for path in root.glob(below + pattern) if path.is_file())
        if found:
            return [path for path in found if path.parent == found[0].parent]
    return []


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as UTF-8 text; unpack or download the annotation again.") from None


def read_classes(root: pathlib.Path) -> tuple[str, ...]:
    """The names of detclasslist.txt, "1 BaseballPitch" a line, where it is there; else the same from memory."""
    found = find_files(root, "detclasslist.txt")
    names = tuple(line.split()[-1] for line in _read_lines(found[0]) if line.strip()) if found else CLASSES
    if len(set(names)) < len(names) or not names:
        raise UserError(f"{found[0]}: must name each class once; download the annotation again.")
    return names


def read_texts(
    paths: Sequence[pathlib.Path], word: str, classes: Sequence[str], exceptions: list[str]
) -> Iterator[Row]:
    """Rows of the official files, one a class; adds a sentence for each file and line that cannot be used."""
    labels = {path.name.removesuffix(f"_{word}.txt"): path for path in paths}
    exceptions += [f"{paths[0].parent}: has no file {name}_{word}.txt, so the class '{name}' has no segments; unpack "
                   "the annotation again." for name in classes if name not in labels]
    for label, path in labels.items():
        if label not in classes and label != AMBIGUOUS:
            exceptions.append(f"{path}: '{label}' is none of the {len(classes)} classes; the file is left out.")
            continue
        for number, line in enumerate(_read_lines(path), start=1):
            cells = line.split()
            if not cells:
                continue
            times = _to_numbers(cells[1:])
            if len(cells) != 3 or not _is_segment(times):
                exceptions.append(f"{path}:{number}: '{line.strip()}' is not a video, a start and a later end in "
                                  "seconds; the line is left out.")
                continue
            yield Row(cells[0], label, (times[0], times[1]))


def read_table(
    path: pathlib.Path, classes: Sequence[str], ratios: dict[str, float], exceptions: list[str]
) -> Iterator[Row]:
    """Rows of AFSD's table; `frames` is None where the video's length is not known."""
    for number, cells in _read_csv(path, ("video", "type", "start", "end", "startFrame", "endFrame")):
        times = _to_numbers([cells["start"], cells["end"]])
        frames = _to_numbers([cells["startFrame"], cells["endFrame"]])
        if not cells["video"] or not _is_segment(times) or not _is_segment(frames):
            exceptions.append(f"{path}:{number}: needs a video, and a start and a later end in seconds and in frames; "
                              "the row is left out.")
        elif cells["type"] not in classes and cells["type"] != AMBIGUOUS:
            exceptions.append(f"{path}:{number}: '{cells['type']}' is none of the {len(classes)} classes; the row is "
                              "left out.")
        else:
            ratio = ratios.get(cells["video"])
            scaled = None if ratio is None else (frames[0] * ratio, frames[1] * ratio)
            yield Row(cells["video"], cells["type"], (times[0], times[1]), scaled)


def read_lengths(
    place: pathlib.Path, exceptions: list[str], required: bool
) -> tuple[dict[str, Length], dict[str, float]]:
    """Lengths by video, and sampled frames per source frame, from AFSD's video_info tables."""
    if place.is_dir():
        paths = [path for word in SUBSETS.values() for path in find_files(place, f"{word}_video_info.csv")]
    else:
        paths = [place]
    if required and not paths:
        raise UserError(f"--lengths {place}: holds no val_video_info.csv or test_video_info.csv; give AFSD's.")
    lengths, ratios = {}, {}
    for path in paths:
        for number, cells in _read_csv(path, ("video", "fps", "count", "sample_count")):
            fps, frames, sampled = _to_numbers([cells["fps"], cells["count"], cells["sample_count"]])
            if not cells["video"] or not min(fps, frames, sampled) >= 1 or not math.isfinite(fps + frames + sampled):
                exceptions.append(f"{path}:{number}: needs a video and positive fps, count and sample_count; the row "
                                  "is left out.")
                continue
            lengths[cells["video"]] = Length(int(sampled), FPS, frames / fps)
            ratios[cells["video"]] = sampled / frames
    return lengths, ratios


def _read_csv(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells of `columns`) of every row; absent cells are empty. Raises UserError for another table."""
    reader = csv.DictReader(_read_lines(path))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: the first line names no column '{missing[0]}'; give AFSD's table as it is.")
    for cells in reader:
        yield reader.line_num, {name: (cells[name] or "").strip() for name in columns}


def _to_numbers(cells: Sequence[str]) -> list[float]:
    numbers = []
    for cell in cells:
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
    return numbers


def _is_segment(times: Sequence[float]) -> bool:
    return len(times) == 2 and 0 <= times[0] < times[1] < math.inf
