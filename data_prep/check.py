"""Reads a finished dataset folder back, lists everything that is wrong with it, and draws pictures of it.

    python -m data_prep.check data/mine
"""

import argparse
import collections
import functools
import math
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from data_prep.check_files import AGAIN, check_files, check_records, num_records, reason
from data_prep.contact_sheet import draw_contact_sheet, pick_evenly
from data_prep.duration_chart import draw_durations
from sptad_jax.data.annotations import load_annotations
from sptad_jax.data.datasets import GROUND_TRUTH_FILE, INFO_FILE, Dataset, open_dataset
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path

_FIELDS = {"frame_size": int, "chunk_frames": int, "streams": list, "classes": list, "subsets": dict,
           "hours": (int, float), "bytes": int, "checksums": dict}


def check_dataset(dataset: Dataset, quick: bool = False) -> list[str]:
    """Everything that is wrong with a dataset folder, one sentence each; empty where all is well.

    Every record is decoded once, one at a time. `quick` leaves out what reads the record files as a whole: checksums
    and the content of records.

    Raises UserError where dataset.json lacks what the other checks rest on.
    """
    where = dataset.path / INFO_FILE
    for field, kind in _FIELDS.items():
        if not isinstance(dataset.info.get(field), kind):  # type: ignore[arg-type]
            raise UserError(f"{where}: '{field}' is missing or of the wrong kind; {AGAIN}.")
    if not all(isinstance(stated, dict) for stated in dataset.info["subsets"].values()):
        raise UserError(f"{where}: 'subsets' must map each subset to its numbers; {AGAIN}.")
    for video in dataset.videos:
        numbers = [video.num_frames, video.fps, video.duration_sec, video.first_record]
        times = [time for row in video.annotations for time in row.segment_sec]
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers + times) or \
                video.num_frames < 1 or video.fps <= 0:
            raise UserError(f"{where}: video '{video.name}' has a frame count, rate or time that is no number, or not "
                            f"positive; {AGAIN}.")
    return [*_check_counts(dataset), *_check_segments(dataset), *_check_ground_truth(dataset),
            *check_files(dataset, quick), *check_records(dataset, quick)]


def _check_counts(dataset: Dataset) -> Iterator[str]:
    """The numbers that dataset.json states against the videos that it lists."""
    info, where = dataset.info, dataset.path / INFO_FILE
    names = [video.name for video in dataset.videos]
    for name in sorted(name for name, number in collections.Counter(names).items() if number > 1):
        yield f"{where}: video '{name}' is listed more than once; {AGAIN}."
    if len(set(dataset.classes)) < len(dataset.classes):
        yield f"{where}: 'classes' names a class twice; {AGAIN}."
    for subset in sorted({video.subset for video in dataset.videos} - set(info["subsets"])):
        yield f"{where}: 'subsets' lacks '{subset}', which has videos; {AGAIN}."
    for subset, stated in info["subsets"].items():
        videos = [video for video in dataset.videos if video.subset == subset]
        next_record = 0
        for video in videos:
            if video.first_record != next_record:
                yield (f"{where}: video '{video.name}' states first_record {video.first_record}, but the videos before "
                       f"it in '{subset}' have {next_record} records; {AGAIN}.")
            next_record = video.first_record + num_records(dataset, video.num_frames)
        have = {"num_videos": len(videos), "num_records": sum(num_records(dataset, v.num_frames) for v in videos)}
        for field, number in have.items():
            if stated.get(field) != number:
                yield (f"{where}: subset '{subset}' states {field} {stated.get(field)}, its videos make {number}; "
                       f"{AGAIN}.")
    hours = sum(video.duration_sec for video in dataset.videos) / 3600
    if abs(info["hours"] - hours) > 0.001 + 0.001 * hours:
        yield f"{where}: states {info['hours']:g} hours, its videos make {hours:.4g}; {AGAIN}."


def _check_segments(dataset: Dataset) -> Iterator[str]:
    where, known = dataset.path / INFO_FILE, set(dataset.classes)
    for video in dataset.videos:
        if abs(video.num_frames - video.duration_sec * video.fps) > 1.01:
            yield (f"{where}: video '{video.name}' has {video.num_frames} frames, but {video.duration_sec:g} s at "
                   f"{video.fps:g} a second are {video.duration_sec * video.fps:.1f}; {AGAIN}.")
        for row in video.annotations:
            start, end = row.segment_sec
            if not 0 <= start < end <= video.duration_sec + 1e-6:
                yield (f"{where}: video '{video.name}': the segment [{start:g}, {end:g}] of '{row.label}' does not lie "
                       f"within its {video.duration_sec:g} s; correct the annotations and prepare the dataset again.")
            if row.label not in known:
                yield f"{where}: video '{video.name}' has the label '{row.label}', which 'classes' lacks; {AGAIN}."


def _check_ground_truth(dataset: Dataset) -> Iterator[str]:
    """ground_truth.json, which evaluation reads, against dataset.json, which training reads."""
    path = dataset.ground_truth_path
    try:
        videos, exceptions = load_annotations(path, dataset.classes)
    except UserError as error:
        yield str(error)
        return
    yield from exceptions
    truth, stored = {video.name: video for video in videos}, {video.name: video for video in dataset.videos}
    for name in sorted(truth.keys() ^ stored.keys()):
        here, there = (GROUND_TRUTH_FILE, INFO_FILE) if name in truth else (INFO_FILE, GROUND_TRUTH_FILE)
        yield f"{path}: video '{name}' is in {here} but not in {there}; {AGAIN}."
    for name, video in truth.items():
        if name not in stored:
            continue
        ours = stored[name]
        if len(video.annotations) != len(ours.annotations):
            yield (f"{path}: video '{name}' has {len(video.annotations)} instances, but {len(ours.annotations)} in "
                   f"{INFO_FILE}; {AGAIN}.")
        elif video.annotations != ours.annotations:
            yield f"{path}: video '{name}' has other segments or labels than in {INFO_FILE}; {AGAIN}."
        if (video.subset, video.duration_sec) != (ours.subset, ours.duration_sec):
            yield f"{path}: video '{name}' has another subset or duration than in {INFO_FILE}; {AGAIN}."


def draw_pictures(dataset: Dataset, output: pathlib.Path, num_videos: int) -> tuple[list[pathlib.Path], list[str]]:
    """Writes durations.png and a contact sheet for each of `num_videos` videos into the folder `output`.

    Returns the pictures' paths, and a sentence for each that could not be drawn.

    Raises UserError where the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made ({error.strerror}); choose another folder.") from None
    jobs: list[tuple[str, Any]] = [("durations.png", lambda path: draw_durations(dataset, path))]
    for index in pick_evenly(len(dataset.videos), num_videos):
        name = re.sub(r"[^\w.-]", "_", dataset.videos[index].name)[:60]
        jobs.append((f"{index:05d}_{name}.png", functools.partial(draw_contact_sheet, dataset, index)))
    paths, problems = [], []
    for name, draw in tqdm(jobs, desc="pictures", unit="picture", disable=None):
        try:
            draw(output / name)
            paths.append(output / name)
        except OSError as error:
            raise UserError(f"{output / name}: cannot be written ({error.strerror}); choose another --output."
                            ) from None
        except Exception as error:  # of a damaged dataset; what the checks found explains it
            problems.append(f"{output / name}: the picture cannot be drawn ({reason(error)}).")
    return paths, problems


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    if args.videos < 0:
        raise UserError("--videos must not be negative; 0 draws no contact sheet.")
    dataset = open_dataset(args.dataset)
    problems = check_dataset(dataset, args.quick)
    _print_problems(problems)  # hours of work; the pictures may fail
    paths, more = draw_pictures(dataset, pathlib.Path(args.output or dataset.path / "check"), args.videos)
    _print_problems(more)
    for subset in dataset.info["subsets"]:
        videos = [video for video in dataset.videos if video.subset == subset]
        print(f"{subset}: {len(videos)} videos, {sum(v.num_frames for v in videos)} frames, "
              f"{sum(v.duration_sec for v in videos) / 3600:.2f} hours, "
              f"{sum(len(v.annotations) for v in videos)} instances")
    print(f"{len(dataset.classes)} classes, {dataset.info['bytes'] / 1e6:.1f} MB of records; pictures: "
          f"{', '.join(map(str, paths))}")
    if problems or more:
        raise UserError(f"{dataset.path}: {len(problems + more)} problems, listed above.")
    print("all is well" + (", as far as --quick looks" if args.quick else ""))
    return 0


def _print_problems(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"problem: {sentence}", file=sys.stderr)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Verify a prepared dataset, every byte and every record, and draw pictures of it.",
        epilog="Examples:\n"
               "  python -m data_prep.check data/mine\n"
               "  python -m data_prep.check data/thumos14 --quick --videos 20 --output /tmp/look\n"
               "Exit codes: 0 all is well, 2 problems (every one is listed), 130 interrupted.")
    parser.add_argument("dataset", metavar="DIR", help="dataset folder, as data_prep.custom and others write it")
    parser.add_argument("--output", type=local_path, default="", metavar="DIR",
                        help="folder of the pictures (default DIR/check)")
    parser.add_argument("--videos", type=int, default=4, metavar="N",
                        help="contact sheets to draw, of videos spread evenly over the dataset (default 4)")
    parser.add_argument("--quick", action="store_true",
                        help="leave out checksums and the content of records: seconds, however large the dataset")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
