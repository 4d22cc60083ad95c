"""The command `sptad detect`: many files and folders to detections, tracks, labelled copies and a report."""

import argparse
import contextlib
import itertools
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from sptad_jax import launch
from sptad_jax.errors import UserError
from sptad_jax.files import composed, files_below, local_path

if TYPE_CHECKING:  # NumPy, JAX and FFmpeg are loaded when the command runs
    from sptad_jax.inference.detect import Detection, Detector

HELP = """Finds actions in video files of any length with a trained checkpoint.

  sptad detect sample.mp4
  sptad detect my.mp4 --checkpoint runs/demo
  sptad detect videos/ a.mkv --checkpoint runs/demo --output detections.json --output detections.csv
  sptad detect my.mp4 --checkpoint runs/demo --output my.vtt --threshold 0.3 --top-k 20 --classes "run,long jump"
  sptad detect my.mp4 --checkpoint runs/demo --render labelled --report runs/demo/detections
  srun sptad detect videos/ --checkpoint runs/demo --output detections.json --multihost

Exit code 2 where a file could not be read; the others are still done. With --multihost the videos are spread over all
processes, and each video over the devices of one; the first process writes the tables and the page of all of them.
"""
SHOWN_SCORE = 0.1  # least score of what is printed, subtitled and drawn, where --threshold says nothing
LOG_SECONDS = 30.0  # between lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO_OR_FOLDER",
                        help="any file that FFmpeg reads; of a folder, all videos in it and below")  # fmt: skip
    parser.add_argument("--checkpoint", default="demo", metavar="DIR_OR_FILE",
                        help="work folder of a training, or an exported .safetensors; without it the demo's detector, "
                             "which ships with the package and knows rendered motions alone")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE",
                        help="change one option of inference, as inference.vote=true; or data.stride_test")
    parser.add_argument("--output", type=local_path, action="append", default=[], metavar="FILE",
                        help="write detections, as the ending says: .json (ActivityNet), .csv, or subtitles, .vtt or "
                             ".srt; may be repeated. Of several videos each has its own subtitles: FILE.NAME.vtt")
    parser.add_argument("--render", type=local_path, metavar="DIR",
                        help="write a copy of each video with labels, without sound")  # fmt: skip
    parser.add_argument("--report", type=local_path, metavar="DIR",
                        help="write a page on which each video plays above its time line")  # fmt: skip
    parser.add_argument("--ground-truth", metavar="GT.json",
                        help="ActivityNet annotations, drawn above the detections on the page of --report")  # fmt: skip
    parser.add_argument("--classes", metavar="A,B", help="detections of these classes alone")
    parser.add_argument("--threshold", type=float, metavar="SCORE",
                        help=f"leave out lower scores; default: {SHOWN_SCORE} for what is printed, subtitled and "
                             "drawn, none for .json, .csv and the report")  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="the best K detections of each video alone")
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    _check_options(args)
    launch.join(args)
    from sptad_jax import program_cache
    from sptad_jax.data.video import read_frames_at
    from sptad_jax.evaluation.files import load_ground_truth
    from sptad_jax.inference import outputs
    from sptad_jax.inference.detect import check_classes, load_detector
    from sptad_jax.report.page import write_detection_report
    from sptad_jax.training import distributed

    # One list for all, as the first process sees the folders. To meet here also connects the processes: at their first
    # collective on a CPU they wait half a minute for each other, later on as long as it takes.
    videos = [_Video(*fields) for fields in distributed.gather(_list_videos(args.videos))[0]]
    for output in args.output:
        outputs.check_output(output)
    if args.render:
        outputs.check_folder(pathlib.Path(args.render), f"--render {args.render}")
    ground_truth = load_ground_truth(args.ground_truth) if args.ground_truth else None
    detector = load_detector(args.checkpoint, program_cache.user_folder(), args.set)
    classes = _split(args.classes, detector.classes) if args.classes else None
    check_classes(classes, detector.classes)

    job = _Job(args, detector, classes, videos)
    try:
        with _interrupted_by_sigterm():
            job.process_share()
            job.gather()
    finally:  # whatever stops a long job, what was found is kept
        job.write_tables()
    if distributed.is_main():
        if args.report:
            paths = {video.name: video.path for video in videos if video.name in job.results}
            page = write_detection_report(
                pathlib.Path(args.report), job.results, list(detector.classes), durations=job.durations,
                frames_of=lambda name, times: read_frames_at(paths[name], times), paths=paths,
                ground_truth=ground_truth,
            )  # fmt: skip
            print(f"report: {page}")
        if job.failed:
            print(f"error: {job.failed} of {len(videos)} videos could not be done, see above.", file=sys.stderr)
    distributed.end()
    return 2 if job.failed else 0


class _Video(NamedTuple):
    """name: in tables and on the page. file_name: the same as a part of file names. size: bytes of the file."""

    path: str
    name: str
    file_name: str
    size: int


class _Job:
    """What has been found so far: `results` and `durations` (seconds) by the name of the video, and how many `failed`.

    Of the share of this process, and of all of them after `gather`.
    """

    def __init__(
        self, args: argparse.Namespace, detector: "Detector", classes: Sequence[str] | None, videos: Sequence[_Video]
    ) -> None:
        self._args, self._detector, self._classes, self._videos = args, detector, classes, videos
        self._is_gathered = False
        self.results: dict[str, list[Detection]] = {}
        self.durations: dict[str, float] = {}
        self.failed = 0

    def process_share(self) -> None:
        """Detects in the videos that fall to this process."""
        import jax

        total = len(self._videos)
        for number in deal([video.size for video in self._videos], jax.process_count())[jax.process_index()]:
            try:
                self._process(self._videos[number], f"[{number + 1}/{total}] " if total > 1 else "")
            except UserError as error:  # the other videos are still worth detecting in
                print(f"error: {printable(error)}", file=sys.stderr)
                self.failed += 1

    def gather(self) -> None:
        """Every process gets what all of them found, in the order of the videos."""
        from sptad_jax.training import distributed

        with distributed.explain_lost_process("start all of them again; of what they found, each leaves a table"):
            parts = distributed.gather([self.results, self.durations, self.failed])
        found: dict[str, Any] = {name: rows for results, _, _ in parts for name, rows in results.items()}
        self.results = {video.name: found[video.name] for video in self._videos if video.name in found}
        self.durations = {name: seconds for _, durations, _ in parts for name, seconds in durations.items()}
        self.failed = sum(failed for _, _, failed in parts)
        self._is_gathered = True

    def write_tables(self) -> None:
        """One table of all videos; where it did not come to that, each of several processes writes what it has."""
        import jax

        from sptad_jax.inference import outputs

        if self._is_gathered and jax.process_index() != 0:
            return
        mark = "" if self._is_gathered or jax.process_count() == 1 else f".process-{jax.process_index()}"
        for output in map(pathlib.Path, self._args.output):
            if output.suffix.lower() in outputs.TABLES:
                outputs.write_table(output.with_name(f"{output.stem}{mark}{output.suffix}"), self.results)

    def _process(self, video: _Video, prefix: str) -> None:
        """Detects in one file, prints, and writes what belongs to it alone. Raises UserError."""
        from sptad_jax.data.video import stated_duration
        from sptad_jax.inference import outputs
        from sptad_jax.inference.detect import detect_video, select

        path = video.path
        if pathlib.Path(path).is_dir():
            raise UserError(f"{path}: the folder holds no video; give one that does, or name the file itself.")
        with show_progress(prefix + printable(pathlib.Path(path).name), stated_duration(path)) as on_progress:
            found, duration_sec = detect_video(self._detector, path, on_progress)
        found = select(found, self._args.threshold or 0.0, self._classes, self._args.top_k)
        self.results[video.name], self.durations[video.name] = found, duration_sec

        shown = select(found, SHOWN_SCORE) if self._args.threshold is None else found
        lines = [f"{printable(path)}  ({duration_sec:.1f} s)"]
        for row in shown:
            start, end = row["segment"]
            lines.append(f"  {start:8.2f} - {end:8.2f} s  {row['score']:.3f}  {row['label']}")
        print("\n".join(lines), flush=True)  # at once, as other processes may write between
        for output in map(pathlib.Path, self._args.output):
            if output.suffix.lower() in outputs.TRACKS:
                own = output.with_name(f"{output.stem}.{video.file_name}{output.suffix}")
                outputs.write_track(own if len(self._videos) > 1 else output, shown)
        if self._args.render:
            from sptad_jax.inference.render import render_video

            target = pathlib.Path(self._args.render) / f"{video.file_name}.detected.mp4"
            with show_progress(f"{prefix}{target.name}", duration_sec) as on_progress:
                render_video(path, target, shown, self._detector.classes, on_progress)


def deal(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices of `sizes` in `count` shares of about equal sums, each in order: the largest first, to who has least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        least = sums.index(min(sums))
        shares[least].append(index)
        sums[least] += sizes[index] + 1  # so that files without a size are spread as well
    return [sorted(share) for share in shares]


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """A scheduler's signal acts as Ctrl-C does. By default it ends the process on the spot, and with several
    processes not at all, for JAX takes it as a request that only training asks for."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler that is not Python's


@contextlib.contextmanager
def show_progress(title: str, total_sec: float) -> Iterator[Callable[[float], None]]:
    """Gives a function to be told the seconds of video done: a bar on a terminal, else a line every LOG_SECONDS.

    On standard error. `total_sec` is 0 where the length is not known: then there is no time left to show.
    """
    on_terminal, start = sys.stderr.isatty(), time.monotonic()
    said = start
    total = math.ceil(total_sec)
    with tqdm(total=total or None, desc=title, unit=" s of video", leave=False, dynamic_ncols=True,
              disable=not on_terminal) as bar:  # fmt: skip

        def update(done_sec: float) -> None:
            nonlocal said
            done = min(int(done_sec), total) if total else int(done_sec)
            now = time.monotonic()
            if on_terminal:
                bar.update(done - bar.n)
            elif now - said >= LOG_SECONDS:
                said, rate = now, done / (now - start)
                left = f", {tqdm.format_interval((total - done) / rate)} left" if total and rate else ""
                of = f" of {total}" if total else ""
                print(f"{title}: {done}{of} s, {rate:.1f} s of video a second{left}", file=sys.stderr, flush=True)

        yield update


def printable(text: object) -> str:
    """Text on one line that any terminal can show: file names may hold bytes that are no text, and escape codes."""
    decoded = os.fsencode(str(text)).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in decoded)


def _check_options(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold:g}: scores lie between 0 and 1; give such a number.")
    if args.top_k is not None and args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: give at least 1.")
    if args.ground_truth and not args.report:
        raise UserError(f"--ground-truth {args.ground_truth}: it is drawn on the page; give --report DIR as well.")


def _split(text: str, known: Collection[str]) -> list[str]:
    """Names between commas; a class whose own name has a comma is taken whole."""
    return [text] if text in known else [part.strip() for part in text.split(",")]


def _list_videos(given: Sequence[str]) -> list[_Video]:
    """Files as they are, folders as the videos below them; a folder without any stays, so that it is complained of.

    Every video has a name of its own: of several files of one name the later ones are named by their path.
    """
    from sptad_jax.data.video import ENDINGS
    from sptad_jax.inference import outputs

    paths: list[str] = []
    for item in given:
        below = []
        if os.path.isdir(item):
            below = [str(path) for path in files_below(item, ENDINGS)]
        paths += below or [item]
    videos: dict[str, _Video] = {}
    file_names: set[str] = set()
    for path in dict.fromkeys(paths):
        stem = composed(printable(pathlib.Path(path).stem))
        name = _unused(stem if stem not in videos else printable(path), videos)
        file_name = _unused(outputs.file_name(name), file_names)
        file_names.add(file_name)
        videos[name] = _Video(path, name, file_name, os.path.getsize(path) if os.path.isfile(path) else 0)
    return list(videos.values())


def _unused(name: str, taken: Collection[str]) -> str:
    candidates = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
