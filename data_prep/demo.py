"""Renders the demo's videos and prepares them, by the `synthetic` options of a config.

    python -m data_prep.demo --config configs/demo.py
    python -m data_prep.demo --config configs/demo.py --set synthetic.seed=1 --set data.dataset_dir=runs/seed1/dataset

The two steps are data_prep.synthetic and data_prep.custom, as for anyone's videos; the files lie beside the dataset.
"""

import argparse
import os
import pathlib
import sys

from data_prep.custom import prepare
from data_prep.decode import FrameSettings
from data_prep.synthetic import Settings, render_dataset
from sptad_jax.config import load_config
from sptad_jax.errors import report_errors


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)

    config = load_config(args.config, args.set)
    options = config.synthetic
    dataset_dir = pathlib.Path(config.data.dataset_dir)
    rendered = dataset_dir.with_name(f"{dataset_dir.name}_videos")
    annotations = render_dataset(
        rendered, options.train_videos, options.test_videos, Settings(options.seed, options.video_size), args.processes
    )
    frames = FrameSettings(
        frame_size=options.frame_size, flow="dis", bound=options.flow_bound, flow_size=options.video_size
    )
    prepare(rendered / "videos", annotations, dataset_dir, frames, processes=args.processes)
    print(f"{dataset_dir}: {options.train_videos} training and {options.test_videos} test videos are ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
