"""THUMOS14 to a dataset, or to the number of its windows before a video is there.

    python -m data_prep.thumos14 count --annotations DIR --rule paper --length 256 --stride 30 --subset validation
    python -m data_prep.thumos14 build --videos DIR --annotations DIR --output data/thumos14

The annotations are the official text files (`Billiards_val.txt`, lines "video start end" in seconds, a file a class)
or AFSD's tables (`val_Annotation.csv`), in the folder or at most two below. Lengths come from AFSD's
`val_video_info.csv` and `test_video_info.csv`; only `count` and the frame columns need them.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from data_prep import counts
from data_prep.counts import Length
from data_prep.options import add_frame_options, read_frame_options, read_work_options
from data_prep.thumos14_files import (
    AMBIGUOUS,
    FPS,
    SUBSETS,
    Row,
    find_files,
    read_classes,
    read_lengths,
    read_table,
    read_texts,
)
from sptad_jax.data.annotations import Annotation, Video
from sptad_jax.errors import UserError, report_errors
from sptad_jax.evaluation.thumos_official import TEST_SETS
from sptad_jax.files import local_path

TIMES_TOLERANCE_FRAMES = 2.0  # seconds and frame columns that differ by more sampled frames are reported


@dataclasses.dataclass(frozen=True)
class Source:
    """What the annotation folder says of some subsets; `lengths` is empty where no file with them was found."""

    videos: list[Video]
    classes: tuple[str, ...]
    lengths: dict[str, Length]
    exceptions: list[str]


def load_thumos14(
    folder: str | os.PathLike[str], subsets: Sequence[str] = tuple(SUBSETS), *, times: str = "seconds",
    lengths: str | os.PathLike[str] = "", preset: int = 213,
) -> Source:
    """Reads the annotation of some subsets; rows that cannot be used are left out, and each has a sentence.

    Args:
      folder: holds the official text files, AFSD's tables, or both (then the text files give the seconds).
      subsets: "validation", "test" or both.
      times: "seconds", or "frames" for AFSD's frame columns x sample_count / count, as AFSD trains on.
      lengths: AFSD's video_info table, or a folder of them; by default they are sought in `folder`.
      preset: number of test videos, see TEST_SETS.

    Raises UserError where the folder has no annotation of a subset, or no frame columns for times="frames".
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"--annotations {folder}: no such folder; give the one with THUMOS14's annotation.")
    exceptions: list[str] = []
    classes = read_classes(root)
    known, ratios = read_lengths(pathlib.Path(lengths) if lengths else root, exceptions, required=bool(lengths))
    videos = []
    for subset in subsets:
        word = SUBSETS[subset]
        tables = find_files(root, f"{word}_Annotation.csv") or find_files(root, f"{word}_Annotation_ours.csv")
        rows_of_table = list(read_table(tables[0], classes, ratios, exceptions)) if tables else []
        texts = find_files(root, f"*_{word}.txt")
        if times == "frames" and not rows_of_table:
            raise UserError(f"--annotations {folder}: no {word}_Annotation.csv there or up to two folders below, and "
                            "only AFSD's tables have frame columns; add it, or use --times seconds.")
        if texts and times == "seconds":
            rows = list(read_texts(texts, word, classes, exceptions))
        else:
            rows = rows_of_table
        if not rows:
            raise UserError(f"--annotations {folder}: no *_{word}.txt and no {word}_Annotation.csv with a usable row "
                            "there or up to two folders below; give the unpacked annotation of THUMOS14.")
        if any(row.video in TEST_SETS[preset] for row in rows):
            exceptions.append(f"{subset}: {', '.join(TEST_SETS[preset])} left out by --preset {preset}.")
        rows, rows_of_table = ([row for row in some if row.video not in TEST_SETS[preset]]
                               for some in (rows, rows_of_table))
        _report_disagreement(rows_of_table, tables, times, exceptions)
        videos += _to_videos(rows, subset, times, exceptions)
    return Source(videos, classes, known, exceptions)


def _report_disagreement(
    rows: Sequence[Row], tables: Sequence[pathlib.Path], times: str, exceptions: list[str]
) -> None:
    """A sentence for each video whose seconds and frame columns say different things."""
    worst: dict[str, float] = collections.defaultdict(float)
    for row in rows:
        if row.label != AMBIGUOUS and row.frames is not None:
            gap = max(abs(second * FPS - frame) for second, frame in zip(row.segment_sec, row.frames))
            worst[row.video] = max(worst[row.video], gap)
    exceptions += [f"video '{name}': seconds and frame columns of {tables[0].name} differ by up to {gap:.1f} sampled "
                   f"frames; the {times} are used." for name, gap in sorted(worst.items())
                   if gap > TIMES_TOLERANCE_FRAMES]


def _to_videos(rows: Sequence[Row], subset: str, times: str, exceptions: list[str]) -> list[Video]:
    """Rows by video, sorted by name and then as they came; Ambiguous kept apart, repetitions left out."""
    actions: dict[str, list[Annotation]] = collections.defaultdict(list)
    ambiguous: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for row in rows:
        segment_sec = row.segment_sec
        if times == "frames" and row.frames is not None:
            segment_sec = (row.frames[0] / FPS, row.frames[1] / FPS)
        elif times == "frames":
            exceptions.append(f"video '{row.video}': its length is not known, so its frame columns cannot be scaled; "
                              f"the seconds are used for {row.label} [{segment_sec[0]:g}, {segment_sec[1]:g}].")
        annotation = Annotation(segment_sec, row.label)
        if row.label == AMBIGUOUS:
            ambiguous[row.video].append(segment_sec)
        elif annotation in actions[row.video]:
            exceptions.append(f"video '{row.video}': {row.label} [{segment_sec[0]:g}, {segment_sec[1]:g}] is written "
                              "more than once; the repetition is left out.")
        else:
            actions[row.video].append(annotation)
    names = sorted(set(actions) | set(ambiguous))
    exceptions += [f"video '{name}': has Ambiguous segments only; it stays, without an action." for name in names
                   if not actions[name]]
    cliffs = [(name, a.segment_sec) for name in names for a in actions[name] if a.label == "CliffDiving"]
    doubled = sum(Annotation(segment_sec, "Diving") in actions[name] for name, segment_sec in cliffs)
    if doubled:
        exceptions.append(f"{subset}: {doubled} of {len(cliffs)} CliffDiving instances are annotated as Diving too, at "
                          "the same times; both are kept.")
    return [Video(name, subset, 0.0, actions[name], tuple(ambiguous[name])) for name in names]


def count(
    folder: str | os.PathLike[str], subset: str, *, rule: str = "paper", length: int = 256, stride: int = 30,
    times: str = "seconds", lengths: str | os.PathLike[str] = "", preset: int = 213,
) -> dict[str, Any]:
    """Statistics of a subset, see data_prep.counts.count; arguments as `load_thumos14` and there.

    With times="frames" windows are AFSD's own, which numbers frames from 1 (see data_prep.counts.count_windows).
    """
    source = load_thumos14(folder, [subset], times=times, lengths=lengths, preset=preset)
    if not source.lengths:
        raise UserError(f"--annotations {folder}: no val_video_info.csv or test_video_info.csv there; name AFSD's with "
                        "--lengths, windows need the videos' lengths.")
    statistics = counts.count(
        source.videos, source.lengths, source.classes, rule=rule, length=length, stride=stride,
        frames_from=1 if times == "frames" else 0, exceptions=source.exceptions)
    return {"dataset": "THUMOS14", "subset": subset, "rule": rule, "length": length, "stride": stride, "times": times,
            "preset": preset, **statistics}


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    if args.command == "count":
        statistics = count(args.annotations, args.subset, rule=args.rule, length=args.length, stride=args.stride,
                           times=args.times, lengths=args.lengths, preset=args.preset)
        print(json.dumps(statistics, indent=1, ensure_ascii=False))
        return 0
    # brings TFDS, which takes seconds to import and count does without
    from data_prep.prepare import prepare_videos, print_outcome

    settings = read_frame_options(args)
    source = load_thumos14(args.annotations, times=args.times, lengths=args.lengths, preset=args.preset)
    notes = prepare_videos(args.videos, args.output, source.videos, settings, classes=source.classes,
                           exceptions=source.exceptions, name="THUMOS14", **read_work_options(args))
    print_outcome(args.output, notes)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.thumos14", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="THUMOS14: prepare the videos, or count windows without them.",
        epilog="Examples:\n"
               "  python -m data_prep.thumos14 count --annotations thumos14/ --rule afsd --subset validation\n"
               "  python -m data_prep.thumos14 count --annotations thumos14/ --rule all --stride 128 --subset test\n"
               "  python -m data_prep.thumos14 build --videos videos/ --annotations thumos14/ --output data/thumos14\n"
               "Exit codes: 0 done, 2 input that cannot be used, 130 interrupted; run build again to go on.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--annotations", required=True,
                        help="folder of the official text files or AFSD's tables, at most two folders down")
    common.add_argument("--times", choices=["seconds", "frames"], default="seconds",
                        help="seconds, or the frame columns of AFSD's tables (default seconds)")
    common.add_argument("--lengths", default="", help="AFSD's video_info table or a folder of them (default: sought in "
                                                      "the annotation folder)")
    common.add_argument("--preset", type=int, choices=sorted(TEST_SETS), default=213,
                        help="number of test videos; docs/datasets.md says who uses which (default 213, all)")
    build = commands.add_parser("build", parents=[common], help="videos to a dataset folder")
    build.add_argument("--videos", default="",
                       help="folder of video files, searched at any depth; not needed with --rgb-from")
    build.add_argument("--output", type=local_path, required=True, help="folder to write")
    add_frame_options(build)
    count_parser = commands.add_parser("count", parents=[common], help="statistics as one JSON object; no videos")
    count_parser.add_argument("--subset", choices=list(SUBSETS), required=True)
    count_parser.add_argument("--rule", choices=counts.RULES, default="paper", help="which windows (default paper)")
    count_parser.add_argument("--length", type=int, default=256, help="frames of a window (default 256)")
    count_parser.add_argument("--stride", type=int, default=30, help="frames between windows (default 30)")
    count_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
