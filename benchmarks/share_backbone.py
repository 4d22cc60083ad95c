"""What `inference.share_backbone` saves and costs: forward passes over the test windows of a dataset, and mAP.

    python -m benchmarks.share_backbone --checkpoint runs/demo [--dataset runs/demo/dataset] [--repeats 5] [--quick]
        [--output share_backbone.json]

All windows are read before the clock starts. Both sides run the same weights in turns, the ratio is the median of the
rounds' ratios. A frame counts as often as it is part of a window that goes through the backbones.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_ratio, report, time_in_turns
from sptad_jax.config import Config
from sptad_jax.data.datasets import Dataset, open_dataset
from sptad_jax.data.pipeline import make_test_batches
from sptad_jax.evaluation.average_precision import evaluate
from sptad_jax.evaluation.files import load_ground_truth
from sptad_jax.inference.detect import load_detector
from sptad_jax.inference.postprocess import windows_to_detections
from sptad_jax.inference.predict import make_forward, predict_windows
from sptad_jax.inference.sharing import SharedForward

Batches = list[dict[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="work folder of a training, or .safetensors")
    parser.add_argument("--dataset", default="", metavar="DIR", help="default: that of the training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three batches, one repeat, no mAP")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    detector = load_detector(args.checkpoint)
    config, classes = detector.config, detector.classes
    dataset = open_dataset(args.dataset or config.data.dataset_dir)
    reader = make_test_batches(dataset, config.data, config.inference.batch_size, config.model.streams)
    batches = list(reader)[:3 if args.quick else None]
    windows = sum(int(batch["is_real"].sum()) for batch in batches)

    rows: list[dict[str, Any]] = []
    sides = {}
    for name, share in (("exact", False), ("shared", True)):
        inference = dataclasses.replace(config.inference, share_backbone=share, mirror=False)  # it shares no mirror
        side = dataclasses.replace(config, inference=inference)
        forward = make_forward(side, len(classes))
        passes = windows
        if isinstance(forward, SharedForward):
            passes = count_passes(forward, detector.variables, batches)

        def run(forward: Any = forward) -> dict[int, dict[str, np.ndarray]]:
            return predict_windows(forward, detector.variables, batches, windows)

        sides[name] = run
        row: dict[str, Any] = {"backbones": name, "windows": windows, "passes": passes}
        rows.append(row if args.quick else row | {"average mAP": average_map(run(), dataset, side, classes)})
    seconds = time_in_turns(sides, 1 if args.quick else args.repeats)
    for row in rows:
        row["median seconds"] = float(np.median(seconds[row["backbones"]]))
    report(f"Sharing the backbones, {args.checkpoint}", rows, args.output, jax=jax.__version__,
           device=jax.devices()[0].device_kind, ratio=median_ratio(seconds["exact"], seconds["shared"]))


def count_passes(forward: SharedForward, variables: Any, batches: Batches) -> int:
    """Windows that go through the backbones: those of the batches of `extract`, without what fills up the last one."""
    stream = next(name for name in ("rgb", "flow") if name in batches[0])
    seen: list[tuple[int, int]] = []

    def extract(variables: Any, batch: dict[str, np.ndarray]) -> Any:
        seen.extend({(hash(x.tobytes()), int(n)) for x, n in zip(batch[stream], batch["num_frames"])})
        return np.zeros((len(batch["num_frames"]), 1))

    def finish(variables: Any, old: Any, new: Any, rows: Any) -> Any:
        return {}

    for _ in dataclasses.replace(forward, extract=extract, finish=finish).run(variables, batches):
        pass
    return len(seen)


def average_map(
    predicted: dict[int, dict[str, np.ndarray]], dataset: Dataset, config: Config, classes: tuple[str, ...]
) -> float:
    detections = {}
    for index in dataset.indices_of(config.data.test_subset):
        video = dataset.videos[index]
        detections[video.name] = windows_to_detections(
            predicted[index], duration_sec=video.duration_sec, fps=video.fps, config=config, classes=classes)
    truth = load_ground_truth(dataset.ground_truth_path)
    results = evaluate(truth, {"results": detections}, config.evaluation.tious, subset=config.data.test_subset)
    return float(results["average_map"])


if __name__ == "__main__":
    main()
