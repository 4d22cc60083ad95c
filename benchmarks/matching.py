"""One-to-one matching by optax on the device and by SciPy on the host, alone and as a share of a training step.

    python -m benchmarks.matching [--config FILE] [--set group.field=value] [--quick] [--output matching.json]

The step is the config's with 16 windows, 4 stages, 50 proposals and 32 targets; matching is timed in a program of its
own on logits and segments of those sizes. XLA_FLAGS=--xla_force_host_platform_device_count=4 shares both among four
simulated devices.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.timing import median_ratio, report, time_in_turns
from benchmarks.train_step import NUM_CLASSES, make_step
from sptad_jax.config import Config, load_config
from sptad_jax.training import sharding
from sptad_jax.training.matching import match

SIZES = ("train.batch_size=16", "model.num_stages=4", "model.num_proposals=50", "data.max_targets=32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/custom.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    config = load_config(args.config, [*SIZES, *args.set])
    mesh = sharding.make_mesh(config.train.batch_size)
    sides = {name: make_matching(config, name, mesh) for name in ("optax", "scipy")} | {"step": make_step(config)}
    seconds = time_in_turns(sides, 1 if args.quick else args.repeats)
    rows = [{"what": name, "median seconds": float(np.median(times)),
             "share of the step": median_ratio(times, seconds["step"])} for name, times in seconds.items()]
    report(f"Matching in a step of {args.config}", rows, args.output, jax=jax.__version__, devices=mesh.size,
           device=jax.devices()[0].device_kind)


def make_matching(config: Config, backend: str, mesh: Mesh) -> Callable[[], None]:
    """A function that matches one batch of random predictions and waits for the answer."""
    rng = np.random.default_rng(0)
    stages, batch, slots = config.model.num_stages, config.train.batch_size, config.data.max_targets
    shape = (stages, batch, config.model.num_proposals)
    predictions = (rng.normal(size=(*shape, NUM_CLASSES)), np.sort(rng.random((*shape, 2)), axis=-1))
    targets = (np.sort(rng.random((batch, slots, 2)), axis=-1), np.zeros((batch, slots)), np.ones((batch, slots)))
    types = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.bool_)
    specs = [PartitionSpec(None, mesh.axis_names)] * 2 + [PartitionSpec(mesh.axis_names)] * 3
    inputs = [jax.device_put(jnp.asarray(value, dtype), NamedSharding(mesh, spec))
              for value, dtype, spec in zip((*predictions, *targets), types, specs)]

    @jax.jit
    def program(logits, segments_se, segments_norm, labels, valid):  # type: ignore[no-untyped-def]
        return match(logits, segments_se, segments_norm, labels, valid, config.loss, backend, mesh)

    return lambda: jax.block_until_ready(program(*inputs))


if __name__ == "__main__":
    main()
