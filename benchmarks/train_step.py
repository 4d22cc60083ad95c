"""The whole training step of a config on random bytes, in float32 against bfloat16.

    python -m benchmarks.train_step [--config FILE] [--set group.field=value] [--quick] [--output step.json]
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_ratio, report, time_in_turns
from sptad_jax.config import CHANNELS, Config, load_config
from sptad_jax.training import sharding
from sptad_jax.training.optimizer import make_optimizer
from sptad_jax.training.step import create_state, init_variables, make_train_step

NUM_CLASSES, TARGETS = 20, 5  # of a window
BORDER = 8 / 7  # stored frames to crop, as 112 to 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/custom.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    sides = {}
    for dtype in ("float32", "bfloat16"):
        model = dataclasses.replace(config.model, compute_dtype=dtype)
        sides[dtype] = make_step(dataclasses.replace(config, model=model))
    seconds = time_in_turns(sides, 3 if args.quick else args.repeats)
    rows = [{"compute_dtype": name, "median seconds": float(np.median(times))} for name, times in seconds.items()]
    report(f"Training step of {args.config}", rows, args.output, jax=jax.__version__,
           device=jax.devices()[0].device_kind,
           float32_to_bfloat16=median_ratio(seconds["float32"], seconds["bfloat16"]))


def make_step(config: Config) -> Callable[[], None]:
    """A function that trains one step on a batch of random bytes and waits for it; its first call compiles."""
    mesh = sharding.make_mesh(config.train.batch_size)
    variables = init_variables(config, NUM_CLASSES)
    tx, _, _ = make_optimizer(variables["params"], config, 100)
    state = sharding.replicate(create_state(variables, tx, config), mesh)
    batch = sharding.shard_batch(random_batch(config), mesh)
    step = make_train_step(config, NUM_CLASSES, tx, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state.params, metrics))

    return run


def random_batch(config: Config) -> dict[str, Any]:
    """What the data pipeline would give for the config's sizes."""
    rng = np.random.default_rng(0)
    count, frames, slots = config.train.batch_size, config.data.num_frames, config.data.max_targets
    size = round(config.data.crop_size * BORDER)
    streams = {name: rng.integers(0, 256, (count, frames, size, size, CHANNELS[name]), dtype=np.uint8)
               for name in config.model.streams}
    return streams | {
        "segments_norm": np.sort(rng.random((count, slots, 2), np.float32)),
        "labels": np.zeros((count, slots), np.int32),
        "valid": np.tile(np.arange(slots) < TARGETS, (count, 1)),
        "clip_labels": np.zeros((count, NUM_CLASSES), np.float32),
        "num_frames": np.full(count, frames, np.int32),
    }


if __name__ == "__main__":
    main()
