"""Windows of a prepared dataset as they arrive at the training loop, against the step that consumes them.

    python -m benchmarks.reading [--hours 1] [--step] [--quick] [--output reading.json]

Makes a dataset of random bytes with smooth parts (compressed to about half, as real frames are) at the paper's size,
112 x 112 and 10 fps with flow, larger than the reader's cache, and reads random windows of 256 frames from it. Memory
does not depend on the length of the dataset: nothing of a dataset beyond `cache_bytes` is kept, and the index of
windows takes 500 bytes a window. With --step the full-size two-stream training step is timed on the same machine.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

import numpy as np

from benchmarks.timing import report, time_in_turns
from data_prep.custom import prepare
from data_prep.decode import FrameSettings
from sptad_jax.config import Config, DataConfig, TrainConfig
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.pipeline import make_training_batches

FPS, SIZE, MINUTES = 10, 112, 10  # of a video
GOAL = 5  # windows read for each window trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="length of the dataset, 2.3 GB an hour before "
                                                                 "compression")
    parser.add_argument("--batches", type=int, default=40, help="to read for each setting")
    parser.add_argument("--step", action="store_true", help="time the training step, too; minutes on a CPU")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the length, few batches")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    hours, count = (args.hours / 20, 4) if args.quick else (args.hours, args.batches)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_dataset(root, hours)
        before = peak_mib()
        rows = [read(root / "dataset", threads, workers, count) for threads, workers in ((1, 0), (2, 0), (2, 2))]
    facts = {"hours": hours, "peak_memory_mib": peak_mib(), "of_it_before_reading_mib": before}
    if args.step:
        seconds = time_step()
        best = max(row["windows a second"] for row in rows)
        facts |= {"training_step_seconds_a_window": seconds, "reading_to_training": best * seconds, "goal": GOAL}
    report("Reading random windows of 256 frames, 112 x 112, RGB and flow", rows, args.output, **facts)


def write_dataset(root: pathlib.Path, hours: float) -> None:
    """Arrays as other tools make them, brought to records by data_prep."""
    rng = np.random.default_rng(0)
    num_frames = MINUTES * 60 * FPS
    names = [f"video_{i:03d}" for i in range(max(1, round(hours * 60 / MINUTES)))]
    for kind, channels in (("rgb", 3), ("flow", 2)):
        (root / kind).mkdir()
        for name in names:
            noise = rng.integers(0, 16, (600, SIZE, SIZE, channels), dtype=np.uint8)  # half of each byte is random
            ramp = np.linspace(0, 200, SIZE, dtype=np.uint8)[None, :, None, None]
            np.save(root / kind / f"{name}.npy", np.tile(noise + ramp, (num_frames // 600, 1, 1, 1)))
    rows = [{"segment": [float(s), float(s + 4)], "label": f"class_{s % 20}"} for s in range(0, MINUTES * 60 - 4, 12)]
    database = {name: {"subset": "validation", "duration": num_frames / FPS, "annotations": rows} for name in names}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    settings = FrameSettings(rgb_from=str(root / "rgb"), flow_from=str(root / "flow"))
    prepare("", root / "annotations.json", root / "dataset", settings)


def read(folder: pathlib.Path, threads: int, workers: int, count: int) -> dict[str, float]:
    """One row: windows a second over `count` batches of 4, after the first."""
    config = DataConfig(dataset_dir=str(folder), read_threads=threads, workers=workers)
    dataset = open_dataset(folder, config)
    dataset.cache_bytes = 0  # as for a dataset of many hours
    batches = make_training_batches(dataset, config, TrainConfig(batch_size=4), ("rgb", "flow"))
    next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    rate = 4 * count / seconds
    return {"threads": threads, "workers": workers, "windows a second": rate,
            "MB a second": rate * 256 * SIZE * SIZE * 5 / 1e6, "windows in an epoch": batches.num_windows}


def time_step() -> float:
    """Median seconds of a full-size two-stream training step on one window of random bytes."""
    from benchmarks.train_step import make_step

    return float(np.median(time_in_turns({"step": make_step(Config(train=TrainConfig(batch_size=1)))}, 3)["step"]))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
