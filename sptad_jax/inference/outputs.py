"""Detections as files: ActivityNet JSON and CSV for all videos, WebVTT and SRT tracks for one. docs/detections.md."""

import csv
import html
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from sptad_jax.errors import UserError
from sptad_jax.files import write_text
from sptad_jax.inference.detect import Detection
from sptad_jax.inference.postprocess import write_detections

TABLES, TRACKS = (".json", ".csv"), (".vtt", ".srt")
CSV_FIELDS = ("video", "label", "score", "start_sec", "end_sec")
MAX_NAME_BYTES = 160  # file systems take 255, of which endings need some
WORD_JOINER = "\u2060"  # has no width and no meaning; SRT knows no escapes


def check_output(path: str | os.PathLike[str]) -> None:
    """Makes the folder of an output. Raises UserError where its ending is unknown or it could not be written there."""
    path = pathlib.Path(path)
    if path.suffix.lower() not in TABLES + TRACKS:
        raise UserError(f"--output {path}: the ending says the format; choose one of {', '.join(TABLES + TRACKS)}.")
    check_folder(path.parent, f"--output {path}")
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file in it.")


def check_folder(folder: pathlib.Path, where: str) -> None:
    """Makes a folder. Raises UserError, beginning with `where`, if that is not possible or it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: its folder cannot be made ({error.strerror}); choose another.") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{where}: its folder is not writable; choose another or grant access.")


def write_table(path: str | os.PathLike[str], results: Mapping[str, Sequence[Detection]]) -> None:
    """Writes the detections of all videos, as JSON or CSV by the ending. Raises UserError where that fails."""
    path = pathlib.Path(path)
    if path.suffix.lower() == ".json":
        write_detections(path, {video: [dict(row) for row in rows] for video, rows in results.items()})
    else:
        _write(path, format_csv(results))


def write_track(path: str | os.PathLike[str], detections: Sequence[Detection]) -> None:
    """Writes the detections of one video, as WebVTT or SRT by the ending. Raises UserError where that fails."""
    path = pathlib.Path(path)
    _write(path, format_vtt(detections) if path.suffix.lower() == ".vtt" else format_srt(detections))


def file_name(video: str) -> str:
    """A video's name as part of a file name: what may not stand there becomes "_", what is too long is cut."""
    name = re.sub(r"[^\w.-]", "_", video).lstrip(".") or "_"
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def format_csv(results: Mapping[str, Sequence[Detection]]) -> str:
    """One row a detection, videos in their order, best first; scores unrounded, so that they compare as in JSON."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for video, rows in results.items():
        writer.writerows((video, row["label"], row["score"], *row["segment"]) for row in rows)
    return stream.getvalue()


def format_vtt(detections: Sequence[Detection]) -> str:
    """A cue a detection, in order of time: label and score (W3C WebVTT, 2019, sections 4.1 and 4.2)."""
    cues = [f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(_caption(row), quote=False)}\n"
            for start, end, row in _cues(detections)]  # fmt: skip
    return "\n".join(["WEBVTT\n", *cues])


def format_srt(detections: Sequence[Detection]) -> str:
    """As `format_vtt`, in SubRip's format; "<" and "{" are kept from being read as tags by a mark without width."""
    cues = [f"{k}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n"
            f"{re.sub(r'[<{]', lambda found: found[0] + WORD_JOINER, _caption(row))}\n"
            for k, (start, end, row) in enumerate(_cues(detections), start=1)]  # fmt: skip
    return "\n".join(cues)


def _cues(detections: Sequence[Detection]) -> list[tuple[int, int, Detection]]:
    """(start, end, detection) in milliseconds, each at least 1 ms long, by start and then by end."""
    cues = []
    for row in detections:
        start, end = (round(1000 * time_sec) for time_sec in row["segment"])
        cues.append((start, max(end, start + 1), row))
    return sorted(cues, key=lambda cue: cue[:2])


def _caption(row: Detection) -> str:
    """One line: a blank line would end the cue."""
    return f"{' '.join(row['label'].split())} {row['score']:.2f}"


def _stamp(milliseconds: int, point: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{milliseconds:03d}"


def _write(path: pathlib.Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror}); choose another.") from None
