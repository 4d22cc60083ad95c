"""Turns the GMDCSA24 folder into one annotation file and one flat folder of videos, and reports every repair.

    python -m data_prep.gmdcsa24 --input GMDCSA24 --output runs/gmdcsa24

GMDCSA24 (github.com/ekramalam/GMDCSA24-A-Dataset-for-Human-Fall-Detection-in-Videos, MIT) holds short indoor videos,
`subject_1/Fall/14.mp4`, and a table per folder, `subject_1/Fall.csv`, whose column "Classes" reads like
"Falling (BW) [0.3 to 5]; Standing[0 to 0.2; 6 to 7]" (seconds). Output:

    annotations.json   ActivityNet format, subset "train" for all, as data_prep.custom takes it
    videos/subject_1_Fall_14.mp4 ...   links, or copies with --copy
    rows.json   for each row of each table: kept, mended or dropped, and why

Labels become lower-case gerunds. All kinds of fall (Fall or Falling; forward FW, backward BW, sideways SW) are one
class, "falling", as whoever looks for falls wants every one of them.
"""

import argparse
import collections
import csv
import dataclasses
import difflib
import os
import pathlib
import re
import shutil
import statistics

from sptad_jax.data.annotations import DURATION_TOLERANCE_SEC
from sptad_jax.data.video import decode_video
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path, write_json

SUBSET = "train"
# Spellings in lower case without the direction in brackets, and the class each stands for
SPELLINGS = {
    spelling: label
    for label, short in {
        "falling": "fall", "sitting": "sit", "sleeping": "sleep", "standing": "stand", "walking": "walk",
        "reading": "read", "writing": "write", "drinking": "drink", "eating": "eat", "exercising": "exercise",
    }.items() for spelling in (label, short)
}
TOKEN = re.compile(
    r"(?P<range>\d+(?:\.\d+)?\s*(?:to|-|–)\s*\d+(?:\.\d+)?(?![\d.]))|(?P<mark>[\[\];,])"
    r"|(?P<label>[A-Za-z][A-Za-z _]*(?:\([^()\[\]]*\))?)|(?P<junk>[^\sA-Za-z\[\];,]+)", re.IGNORECASE)


@dataclasses.dataclass
class Row:
    """What became of one row of a table: `row` counts from 1 under the heading; status kept, mended or dropped."""

    table: str
    row: int | None  # None for a video that no row names
    video: str
    status: str = "kept"
    reasons: list[str] = dataclasses.field(default_factory=list)
    segments: list[tuple[float, float, str]] = dataclasses.field(default_factory=list)

    def mend(self, reasons: list[str]) -> None:
        if reasons:
            self.status, self.reasons = "mended", self.reasons + reasons

    def drop(self, reason: str) -> None:
        self.status, self.segments, self.reasons = "dropped", [], self.reasons + [reason]


def normalise_label(text: str) -> tuple[str | None, str]:
    """A label as written -> (class, remark). The class is None where the label is unknown; the remark may be empty."""
    plain = " ".join(re.sub(r"\(.*?\)", " ", text).lower().replace("_", " ").split())
    if plain in SPELLINGS:
        return SPELLINGS[plain], ""
    near = difflib.get_close_matches(plain, SPELLINGS, n=1, cutoff=0.8)
    if near:
        return SPELLINGS[near[0]], f"label '{text.strip()}' read as '{SPELLINGS[near[0]]}'"
    return None, f"label '{text.strip()}' is unknown; it is left out with its segments"


def parse_classes(text: str) -> tuple[list[tuple[float, float, str]], list[str]]:
    """Reads a cell such as "Sitting[0 to 1; 4 to 5]; Falling (SW)[1.8 to 5]:;" however its brackets are set.

    A range belongs to the label before it. Returns segments (start_sec, end_sec, class) as written, unchecked, and
    one remark for everything that had to be guessed or was left out.
    """
    segments: list[tuple[float, float, str]] = []
    remarks: list[str] = []
    written, label, is_open, ranges = "", None, False, 0

    def close_label() -> None:
        if is_open:
            remarks.append(f"']' after the segments of '{written}' is missing and was added")
        if written and not ranges:
            remarks.append(f"label '{written}' has no segment and is left out")

    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group().strip()
        if kind == "label":
            close_label()
            written, is_open, ranges = token, False, 0
            label, remark = normalise_label(token)
            if remark:
                remarks.append(remark)
        elif kind == "range":
            if not written:
                remarks.append(f"segment '{token}' has no label before it and is left out")
                continue
            if not is_open:
                remarks.append(f"'[' before '{token}' of '{written}' is missing and was added")
                is_open = True
            ranges += 1
            if label is not None:
                start, end = re.split(r"\s*(?:to|-|–)\s*", token, flags=re.IGNORECASE)
                segments.append((float(start), float(end), label))
        elif token == "[":
            is_open = True
        elif token == "]":
            if not is_open:
                remarks.append(f"']' after '{written}' closes nothing and is ignored")
            is_open = False
        elif kind == "junk":
            remarks.append(f"'{token}' cannot be read and is ignored")
    close_label()
    return segments, remarks


def check_segments(
    segments: list[tuple[float, float, str]], duration_sec: float
) -> tuple[list[tuple[float, float, str]], list[str]]:
    """Leaves out empty segments, cuts at the video's end, joins overlapping ones of one class; sorts by start."""
    remarks: list[str] = []
    kept: list[tuple[float, float, str]] = []
    for start, end, label in sorted(segments):
        if end <= start:
            remarks.append(f"{label} [{start:g} to {end:g}] ends before or when it starts and is left out")
            continue
        if start >= duration_sec:
            remarks.append(f"{label} [{start:g} to {end:g}] starts after the video's end at {duration_sec:.2f} s and "
                           "is left out")
            continue
        if end > duration_sec + DURATION_TOLERANCE_SEC:
            remarks.append(f"{label} [{start:g} to {end:g}] ends after the video's end and is cut at "
                           f"{duration_sec:.2f} s")
        end = min(end, duration_sec)
        last = next((i for i in reversed(range(len(kept))) if kept[i][2] == label), None)
        if last is not None and start < kept[last][1]:
            remarks.append(f"{label} [{start:g} to {end:g}] overlaps the {label} before it and is joined to it")
            kept[last] = (kept[last][0], max(kept[last][1], end), label)
        else:
            kept.append((start, end, label))
    return kept, remarks


def read_table(path: pathlib.Path, root: pathlib.Path) -> list[tuple[Row, str]]:
    """The rows of a table, each with its cell "Classes"; a row whose cells cannot be told apart is dropped."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    names = [cell.strip().lower() for cell in lines[0]] if lines else []
    if "file name" not in names or "classes" not in names:
        raise UserError(f"{path}: the first line must name the columns, 'File Name' and 'Classes' among them; "
                        "give the folder of GMDCSA24 as --input.")
    name_column, classes_column = names.index("file name"), names.index("classes")
    prefix = path.with_suffix("").relative_to(root)
    rows = []
    for number, cells in enumerate(lines[1:], start=1):
        name = cells[name_column].strip() if len(cells) > name_column else ""
        row = Row(path.relative_to(root).as_posix(), number, (prefix / name).as_posix() if name else "")
        if len(cells) <= classes_column or not name:
            row.drop(f"has {len(cells)} cells of {len(names)}")
            rows.append((row, ""))
            continue
        tail = cells[classes_column:]
        if len(cells) > len(names):  # a comma in the description, or between classes
            first = next((i for i, cell in enumerate(tail) if "[" in cell), len(tail) - 1)
            tail = tail[first:]
            row.mend([f"has {len(cells)} cells of {len(names)}; the classes are read from '{tail[0].strip()}' on"])
        rows.append((row, ",".join(tail)))
    return rows


def convert_row(row: Row, cell: str, root: pathlib.Path, seen: set[str]) -> float:
    """Fills in a row's segments and status. Returns the video's duration in seconds, 0 where the row is dropped."""
    if row.status == "dropped":
        return 0.0
    path = root / row.video
    if row.video in seen:
        row.drop("names the same video as a row before it")
    elif ".." in pathlib.PurePosixPath(row.video).parts or pathlib.PurePosixPath(row.video).is_absolute():
        row.drop("the video's name leads out of the folder")
    elif not path.is_file():
        row.drop("the video is not there")
    if row.status == "dropped":
        return 0.0
    seen.add(row.video)
    try:
        duration_sec = decode_video(path, fps=1, size=16).duration_sec
    except UserError as error:
        row.drop(str(error))
        return 0.0
    segments, remarks = parse_classes(cell)
    row.segments, more = check_segments(segments, duration_sec)
    row.mend(remarks + more)
    if not row.segments:
        row.drop("no segment is left")
    return duration_sec


def convert(input_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], copy: bool = False) -> list[Row]:
    """Writes videos/, rows.json and, last, annotations.json to `output_dir`; returns what became of every row.

    Raises UserError where `input_dir` holds no table, a table lacks its heading, or nothing is left to write.
    """
    root, output = pathlib.Path(input_dir), pathlib.Path(output_dir)
    tables = sorted(root.rglob("*.csv")) if root.is_dir() else []
    if not tables:
        raise UserError(f"--input {input_dir}: no such folder, or no .csv table in it; give the folder of GMDCSA24.")
    database, rows, seen = {}, [], set[str]()
    (output / "videos").mkdir(parents=True, exist_ok=True)
    for table in tables:
        for row, cell in read_table(table, root):
            duration_sec = convert_row(row, cell, root, seen)
            rows.append(row)
            if row.status == "dropped":
                continue
            name = "_".join(pathlib.PurePosixPath(row.video).with_suffix("").parts)
            _place(root / row.video, output / "videos" / f"{name}{pathlib.Path(row.video).suffix}", copy)
            annotations = [{"segment": [round(s, 3), round(e, 3)], "label": label} for s, e, label in row.segments]
            database[name] = {"subset": SUBSET, "duration": round(duration_sec, 3), "annotations": annotations}
    for path in sorted(root.rglob("*.mp4")):
        if path.relative_to(root).as_posix() not in {row.video for row in rows}:
            rows.append(Row("", None, path.relative_to(root).as_posix(), "dropped", ["no row of a table names it"]))
    if not database:
        raise UserError(f"--input {input_dir}: not one row has both a video and a segment; give the folder that holds "
                        "the tables and the videos.")
    write_json(output / "rows.json", [dataclasses.asdict(row) for row in rows])
    write_json(output / "annotations.json", {"version": "GMDCSA24", "taxonomy": [], "database": database})
    return rows


def _place(source: pathlib.Path, target: pathlib.Path, copy: bool) -> None:
    temporary = target.with_name(f"{target.name}.tmp{os.getpid()}")
    if copy:
        shutil.copyfile(source, temporary)
    else:
        temporary.symlink_to(source.resolve())
    os.replace(temporary, target)



def describe(rows: list[Row]) -> str:
    """The report in words: every row that is not kept as it was, then counts and durations per class."""
    lines = [f"{row.table or 'folder'}{f' row {row.row}' if row.row else ''}, {row.video}: {row.status}: "
             f"{'; '.join(row.reasons)}." for row in rows if row.status != "kept"]
    counts = collections.Counter(row.status for row in rows)
    lines.append(f"{len(rows)} rows: {counts['kept']} kept, {counts['mended']} mended, {counts['dropped']} dropped.")
    durations = collections.defaultdict(list)
    for row in rows:
        for start, end, label in row.segments:
            durations[label].append(end - start)
    for label, values in sorted(durations.items()):
        lines.append(f"{label}: {len(values)} instances of {min(values):.1f} to {max(values):.1f} s, "
                     f"median {statistics.median(values):.1f} s.")
    return "\n".join(lines)


@report_errors
def main(argv: list[str] | None = None) -> int:
    """Command line of `convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.gmdcsa24", description="GMDCSA24 -> annotations.json and a flat folder of videos.",
        epilog="Example: python -m data_prep.gmdcsa24 --input GMDCSA24 --output runs/gmdcsa24")
    parser.add_argument("--input", required=True, help="folder with subject_1/Fall.csv, subject_1/Fall/01.mp4 ...")
    parser.add_argument("--output", type=local_path, required=True,
                        help="folder for annotations.json, rows.json and videos/")
    parser.add_argument("--copy", action="store_true", help="copy the videos; by default they are linked")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    print(describe(convert(args.input, args.output, args.copy)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
