"""A folder of videos and a JSON of segments to a dataset for training and evaluation.

    python -m data_prep.custom --videos DIR --annotations FILE.json --output DIR

The JSON is in ActivityNet's format: {"database": {"NAME": {"subset": "training", "duration": 61.5, "annotations":
[{"segment": [3.2, 10.0], "label": "jump"}]}}}. NAME is the video's file name without its ending, anywhere below the
folder; ActivityNet's prefix `v_` is tried too.
"""

import argparse
import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence

from data_prep.builder import build_dataset, is_finished
from data_prep.decode import FrameSettings
from sptad_jax.data.annotations import Video, load_annotations
from sptad_jax.data.datasets import open_dataset
from sptad_jax.errors import UserError, report_errors

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")


def prepare(
    videos: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: FrameSettings | None = None,
    *,
    subsets: Sequence[str] = (),
    classes: Sequence[str] = (),
    processes: int = 1,
    allow_missing: bool = False,
) -> list[str]:
    """Makes a dataset folder, or leaves it as it is where it is finished.

    Args:
      videos: folder that holds the video files, at any depth.
      annotations: ActivityNet-format JSON.
      output: folder to write.
      settings: rate, size and flow; the paper's by default.
      subsets: those to take; empty: all.
      classes: names in the order of class indices, rows of other labels are left out; empty: all labels, sorted.
      processes: that decode side by side.
      allow_missing: leave out videos that are missing or broken.

    Returns: one sentence per annotation or video that was left out or changed.

    Raises UserError for input that cannot be used.
    """
    settings = settings or FrameSettings()
    folder, target = pathlib.Path(videos), pathlib.Path(output)
    if len(set(classes)) < len(classes):
        raise UserError("--classes names a class twice.")
    listed, exceptions = load_annotations(annotations, classes)
    chosen = [video for video in listed if not subsets or video.subset in subsets]
    absent = sorted(set(subsets) - {video.subset for video in listed})
    if not listed:
        raise UserError(f"{annotations}: not one usable video{'; ' + exceptions[0] if exceptions else '.'}")
    if absent:
        have = ", ".join(sorted({video.subset for video in listed}))
        raise UserError(f"--subsets: {annotations} has no video of the subset '{absent[0]}', it has {have}.")
    content = pathlib.Path(annotations).read_bytes()
    fingerprint = hashlib.sha256(repr((content, sorted(subsets), list(classes))).encode()).hexdigest()
    if is_finished(target, settings, fingerprint):  # the videos may be gone by now
        paths: dict[str, pathlib.Path | None] = {}
    else:
        paths = find_videos(folder, chosen)
    return build_dataset(
        target, chosen, paths, settings, classes=classes, exceptions=exceptions, processes=processes,
        allow_missing=allow_missing, fingerprint=fingerprint)


def find_videos(folder: pathlib.Path, videos: Sequence[Video]) -> dict[str, pathlib.Path | None]:
    """The file of each video: NAME or v_NAME with any ending, at any depth; None where there is none.

    Of several files the one with the shallower path wins, then the earlier of `ENDINGS`.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder.")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    files.sort(key=lambda path: (len(path.parts), ENDINGS.index(path.suffix.lower()), os.fspath(path)), reverse=True)
    known: dict[str, pathlib.Path] = {}
    for path in files:  # later ones overwrite
        relative = path.relative_to(folder)
        for name in (path.name, path.stem, relative.as_posix(), relative.with_suffix("").as_posix()):
            known[name] = path
    return {video.name: known.get(video.name, known.get(f"v_{video.name}")) for video in videos}


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    if args.fps <= 0 or args.bound <= 0 or args.frame_size < 16 or args.processes < 1 or args.max_frames < 0:
        raise UserError("--fps, --bound and --processes must be positive, --max-frames not negative, and --frame-size "
                        "at least 16.")
    if 0 < args.flow_size < args.frame_size:
        raise UserError(f"--flow-size {args.flow_size} is below --frame-size {args.frame_size}; raise it, or leave it.")
    settings = FrameSettings(args.fps, args.max_frames, args.frame_size, args.flow, args.bound, args.flow_size)
    if (pathlib.Path(args.output) / "dataset.json").exists():
        print(f"{args.output} holds a finished dataset; delete the folder to prepare it anew.")
    notes = prepare(args.videos, args.annotations, args.output, settings, subsets=args.subsets, classes=args.classes,
                    processes=args.processes, allow_missing=args.allow_missing)
    for sentence in notes:
        print(f"note: {sentence}", file=sys.stderr)
    dataset = open_dataset(args.output)
    for subset, counts in dataset.info["subsets"].items():
        rows = [video for video in dataset.videos if video.subset == subset]
        print(f"{subset}: {counts['num_videos']} videos, {sum(video.num_frames for video in rows)} frames, "
              f"{sum(len(video.annotations) for video in rows)} segments")
    print(f"{len(dataset.classes)} classes; ready for --set data.dataset_dir={args.output}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.custom", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prepare a folder of videos and a JSON of segments for training and evaluation.",
        epilog="Example: python -m data_prep.custom --videos videos/ --annotations segments.json --output data/mine "
               "--fps 10 --flow dis --processes 4\n"
               "Exit codes: 0 done (or done before), 2 input that cannot be used, 130 interrupted; run again to go on.")
    parser.add_argument("--videos", required=True, help="folder of video files, searched at any depth")
    parser.add_argument("--annotations", required=True, help="JSON in ActivityNet's format")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--fps", type=float, default=10.0, help="stored frames per second (default 10)")
    parser.add_argument("--max-frames", type=int, default=0,
                        help="frames of a video at most, at a lower rate where needed; 768 for ActivityNet (default 0: "
                             "no limit)")
    parser.add_argument("--frame-size", type=int, default=112, help="pixels of either side (default 112)")
    parser.add_argument("--flow", choices=["tvl1", "dis", "none"], default="tvl1",
                        help="optical flow: tvl1 as in the paper, dis a hundred times faster, or none (default tvl1)")
    parser.add_argument("--bound", type=float, default=20.0, help="largest flow in pixels (default 20)")
    parser.add_argument("--flow-size", type=int, default=0,
                        help="pixels of either side on which flow is computed before it is averaged down to the frame "
                             "size; helps small frames (default 0: the frame size)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--subsets", nargs="+", default=[], metavar="S", help="subsets to take (default all)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="C",
                        help="class names in order; rows of other labels are left out (default: all labels, sorted)")
    parser.add_argument("--allow-missing", action="store_true", help="leave out videos that are missing or broken")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
