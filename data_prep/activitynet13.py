"""ActivityNet-1.3 to a dataset, or to the number of its windows before a video is there.

    python -m data_prep.activitynet13 count --annotations activity_net.v1-3.min.json --subset training
    python -m data_prep.activitynet13 build --videos DIR --annotations DIR --output data/activitynet13

The annotations are the official `activity_net.v1-3.min.json`, or what BSN made of it: `anet_anno_action.json` with
`video_info_new.csv` beside it. `action_name.txt` (or .csv) beside either gives the order of classes; without it they
are sorted. A video named ID is the file ID or v_ID with any usual ending.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from data_prep import counts
from data_prep.counts import Length
from data_prep.options import add_frame_options, read_frame_options, read_work_options
from sptad_jax.data.annotations import Video, find_classes, parse_database
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path

SUBSETS = ("training", "validation", "testing")  # the last has no published segments
OFFICIAL_FILE = "activity_net.v1-3.min.json"
BSN_FILE, BSN_TABLE = "anet_anno_action.json", "video_info_new.csv"
CLASS_FILES = ("action_name.txt", "action_name.csv")
MAX_FRAMES = 768  # of a video (paper 4.1)


@dataclasses.dataclass(frozen=True)
class Source:
    """What the annotation says. `num_instances` counts segments as they are written, by subset."""

    videos: list[Video]
    classes: tuple[str, ...]
    source_fps: dict[str, float]  # the videos' own mean rate, where a table has it
    num_instances: dict[str, int]
    exceptions: list[str]


def load_activitynet13(
    annotations: str | os.PathLike[str], subsets: Sequence[str] = SUBSETS, *,
    class_names: str | os.PathLike[str] = "",
) -> Source:
    """Reads the official JSON or BSN's files; rows that cannot be used are left out, and each has a sentence.

    Args:
      annotations: a JSON file, or the folder that holds it.
      subsets: those to take.
      class_names: a file with a name a line, in the order of class indices; by default action_name.txt or .csv beside
        the JSON, and without one the labels in use, sorted.

    Raises UserError where there is no such file, it is another kind of file, or a subset has no video.
    """
    path = pathlib.Path(annotations)
    if path.is_dir():
        found = [path / name for name in (OFFICIAL_FILE, BSN_FILE) if (path / name).is_file()]
        if not found:
            raise UserError(f"--annotations {path}: holds neither {OFFICIAL_FILE} nor {BSN_FILE}; give the file itself "
                            "or the folder that has it.")
        path = found[0]
    content = _read_json(path)
    source_fps: dict[str, float] = {}
    exceptions: list[str] = []
    database = content.get("database")
    if database is None:
        database, source_fps = _convert_bsn(path, content, exceptions)
    if not isinstance(database, dict):
        raise UserError(f"{path}: 'database' must map each video to its subset, duration and annotations; download "
                        "the file again.")
    entries = {name: entry for name, entry in database.items()
               if not isinstance(entry, dict) or entry.get("subset") in subsets}
    classes = _read_classes(path, class_names)
    videos, more = parse_database(entries, path, classes)
    num_instances = {subset: sum(len(_rows(entries[video.name])) for video in videos if video.subset == subset)
                     for subset in subsets}
    for subset in subsets:
        if not any(video.subset == subset for video in videos):
            raise UserError(f"{path}: has no video of the subset '{subset}'; download the annotation again.")
    return Source(videos, classes or find_classes(videos), source_fps, num_instances, exceptions + more)


def _rows(entry: dict[str, Any]) -> list[Any]:
    rows = entry.get("annotations")
    return rows if isinstance(rows, list) else []


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--annotations {path}: no such file; give {OFFICIAL_FILE} or the folder that has it."
                        ) from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: cannot be read as JSON; download the annotation again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level must be an object, as in {OFFICIAL_FILE}.")
    return content


def _convert_bsn(
    path: pathlib.Path, content: dict[str, Any], exceptions: list[str]
) -> tuple[dict[str, Any], dict[str, float]]:
    """BSN's {"v_ID": {"duration_second", "duration_frame", "annotations"}} with the subsets of its table.

    Returns a database in ActivityNet's format, by ID, and each video's mean frame rate.
    """
    table = path.with_name(BSN_TABLE)
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: has no 'database', as {OFFICIAL_FILE} has, and without a readable {BSN_TABLE} beside "
                        "it, as BSN gives, the subsets are unknown; add the table.") from None
    reader = csv.DictReader(lines)
    if not {"video", "subset"} <= set(reader.fieldnames or ()):
        raise UserError(f"{table}: the first line must name the columns 'video' and 'subset'; give BSN's table.")
    subsets = {row["video"]: row["subset"] for row in reader}
    database, source_fps = {}, {}
    for name, entry in content.items():
        if name not in subsets or not isinstance(entry, dict):
            exceptions.append(f"{path}: video {name!r} has no row in {BSN_TABLE} or is no object; it is left out.")
            continue
        ident = name.removeprefix("v_")
        duration_sec, frames = entry.get("duration_second"), entry.get("duration_frame")
        database[ident] = {"subset": subsets[name], "duration": duration_sec,
                           "annotations": entry.get("annotations", [])}
        if _is_positive(duration_sec) and _is_positive(frames):
            source_fps[ident] = frames / duration_sec  # type: ignore[operator]
    return database, source_fps


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


def _read_classes(annotations: pathlib.Path, class_names: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names in order, or () where there is no file; the .csv has the heading "action"."""
    candidates = [pathlib.Path(class_names)] if class_names else [annotations.with_name(name) for name in CLASS_FILES]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None and class_names:
        raise UserError(f"--class-names {class_names}: no such file; give one with a class name a line.")
    if found is None:
        return ()
    try:
        names = [line.strip() for line in found.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{found}: is not text in UTF-8; give one with a class name a line.") from None
    names = names[1:] if names[:1] == ["action"] else names
    if not names or len(set(names)) < len(names):
        raise UserError(f"{found}: must name each class once, one a line; correct it.")
    return tuple(names)


def count(
    annotations: str | os.PathLike[str], subset: str, *, rule: str = "paper", length: int = MAX_FRAMES,
    stride: int = MAX_FRAMES, max_frames: int = MAX_FRAMES, class_names: str | os.PathLike[str] = "",
) -> dict[str, Any]:
    """Statistics of a subset, see data_prep.counts.count, for videos of at most `max_frames` frames.

    Where no table has a video's own rate, it is taken to be fast enough for `max_frames`.
    "instances" counts segments as they are written; those that cannot be used are under "exceptions".
    """
    source = load_activitynet13(annotations, [subset], class_names=class_names)
    lengths = {}
    for video in source.videos:
        if video.duration_sec:
            fps = min(max_frames / video.duration_sec, source.source_fps.get(video.name, math.inf))
            frames = max(1, min(max_frames, round(fps * video.duration_sec)))
            lengths[video.name] = Length(frames, fps, video.duration_sec)
    statistics = counts.count(source.videos, lengths, source.classes, rule=rule, length=length, stride=stride,
                              exceptions=source.exceptions)
    return {"dataset": "ActivityNet-1.3", "subset": subset, "rule": rule, "length": length, "stride": stride,
            "max_frames": max_frames, "classes": len(source.classes),
            **statistics, "instances": source.num_instances[subset]}


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    if args.command == "count":
        statistics = count(args.annotations, args.subset, rule=args.rule, length=args.length, stride=args.stride,
                           max_frames=args.max_frames, class_names=args.class_names)
        print(json.dumps(statistics, indent=1, ensure_ascii=False))
        return 0
    # brings TFDS, which takes seconds to import and count does without
    from data_prep.prepare import prepare_videos, print_outcome

    settings = read_frame_options(args)
    source = load_activitynet13(args.annotations, args.subsets, class_names=args.class_names)
    notes = prepare_videos(args.videos, args.output, source.videos, settings, classes=source.classes,
                           exceptions=source.exceptions, name="ActivityNet-1.3", **read_work_options(args))
    print_outcome(args.output, notes)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.activitynet13", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="ActivityNet-1.3: prepare the videos, or count windows without them.",
        epilog="Examples:\n"
               "  python -m data_prep.activitynet13 count --annotations anet/ --subset training\n"
               "  python -m data_prep.activitynet13 build --videos videos/ --annotations anet/ --output data/anet\n"
               "Exit codes: 0 done, 2 input that cannot be used, 130 interrupted; run build again to go on.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--annotations", required=True,
                        help=f"{OFFICIAL_FILE}, or BSN's {BSN_FILE} with {BSN_TABLE} beside it, or the folder")
    common.add_argument("--class-names", default="", metavar="FILE",
                        help="a class name a line, in the order of class indices (default: action_name.txt or .csv "
                             "beside the annotations, else the labels sorted)")
    build = commands.add_parser("build", parents=[common], help="videos to a dataset folder")
    build.add_argument("--videos", default="",
                       help="folder of video files ID or v_ID, searched at any depth; not needed with --rgb-from")
    build.add_argument("--output", type=local_path, required=True, help="folder to write")
    build.add_argument("--subsets", nargs="+", choices=SUBSETS, default=list(SUBSETS[:2]), metavar="S",
                       help="subsets to take (default training and validation; testing has no segments)")
    add_frame_options(build, max_frames=MAX_FRAMES)
    count_parser = commands.add_parser("count", parents=[common], help="statistics as one JSON object; no videos")
    count_parser.add_argument("--subset", choices=SUBSETS, required=True)
    count_parser.add_argument("--rule", choices=counts.RULES, default="paper", help="which windows (default paper)")
    count_parser.add_argument("--max-frames", type=int, default=MAX_FRAMES, help="frames of a video (default 768)")
    count_parser.add_argument("--length", type=int, default=MAX_FRAMES, help="frames of a window (default 768)")
    count_parser.add_argument("--stride", type=int, default=MAX_FRAMES, help="frames between windows (default 768)")
    count_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
