"""A folder of videos and a JSON of segments to a dataset for training and evaluation.

    python -m data_prep.custom --videos DIR --annotations FILE.json --output DIR

The JSON is in ActivityNet's format: {"database": {"NAME": {"subset": "training", "duration": 61.5, "annotations":
[{"segment": [3.2, 10.0], "label": "jump"}]}}}. NAME is the video's file name without its ending, anywhere below the
folder; ActivityNet's prefix `v_` is tried too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from data_prep.decode import FrameSettings
from data_prep.options import add_frame_options, read_frame_options, read_work_options
from data_prep.prepare import prepare_videos, print_outcome
from sptad_jax.data.annotations import load_annotations
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path


def prepare(
    videos: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: FrameSettings | None = None,
    *,
    subsets: Sequence[str] = (),
    classes: Sequence[str] = (),
    **options: Any,
) -> list[str]:
    """Makes a dataset folder, or leaves it as it is where it is finished.

    Args:
      videos: folder that holds the video files, at any depth; not used where settings.rgb_from names arrays.
      annotations: ActivityNet-format JSON.
      output: folder to write.
      settings: rate, size and flow; the paper's by default.
      subsets: those to take; empty: all.
      classes: names in the order of class indices, rows of other labels are left out; empty: all labels, sorted.
      options: processes, allow_missing, beam_runner, beam_options; as data_prep.builder.build_dataset.

    Returns: one sentence per annotation or video that was left out or changed.

    Raises UserError for input that cannot be used.
    """
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
    return prepare_videos(videos, output, chosen, settings or FrameSettings(), classes=classes, exceptions=exceptions,
                          **options)


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    notes = prepare(args.videos, args.annotations, args.output, read_frame_options(args), subsets=args.subsets,
                    classes=args.classes, **read_work_options(args))
    print_outcome(args.output, notes)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.custom", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prepare a folder of videos and a JSON of segments for training and evaluation.",
        epilog="Example: python -m data_prep.custom --videos videos/ --annotations segments.json --output data/mine "
               "--fps 10 --flow dis --processes 4\n"
               "Exit codes: 0 done (or done before), 2 input that cannot be used, 130 interrupted; run again to go on.")
    parser.add_argument("--videos", default="",
                        help="folder of video files, searched at any depth; not needed with --rgb-from")
    parser.add_argument("--annotations", required=True, help="JSON in ActivityNet's format")
    parser.add_argument("--output", type=local_path, required=True, help="folder to write")
    add_frame_options(parser)
    parser.add_argument("--subsets", nargs="+", default=[], metavar="S", help="subsets to take (default all)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="C",
                        help="class names in order; rows of other labels are left out (default: all labels, sorted)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
