"""The network in JAX against the same one in PyTorch, on the same machine in turns: speed and memory.

    python -m benchmarks.pytorch [--dtype float32 bfloat16] [--compile [MODE]] [--quick] [--output pytorch.json]
    python -m benchmarks.pytorch --dtype float32 tf32 bfloat16 --compile --peak-tflops 989 --output pytorch.json  # GPU

The detector is the paper's two-stream one, with one window a batch. Each side is a process of its own, and nothing is
timed before they agree. Parts:

    backbone  I3D forward, RGB; on a GPU the paper's protocol: 1x256x96x96, 2 warm-up and 20 timed passes
    gradient  I3D forward and backward by every kernel, RGB
    detector  the whole forward pass, from bytes
    step      the whole training step, also with model.remat=true, and its peak memory (Linux)
    batch     backbone with twice the batch until memory ends or no side gains; default on an accelerator alone

To save time, float32 and tf32 do backbone and step alone on an accelerator, unless --parts names more.

PyTorch runs eagerly in channels_last_3d, with autocast for bfloat16. On a CPU with units for bfloat16, jax 0.11 and
newer hands such convolutions to oneDNN, as PyTorch does (see `fit_to_device` in sptad_jax/models/conv3d.py).
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import jax_side, torch_side
from benchmarks.timing import median_ratio, report
from sptad_jax.config import Config, apply_overrides, to_dict, validate

PARTS = ("backbone", "gradient", "detector", "step", "batch")
BASE = ("train.batch_size=1", "data.random_crop=false", "data.flip_prob=0")  # the same windows on both sides
# relative error (2-norm) of what the sides compute
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 1e-1}
# Of gradients: rounding decides some ReLUs and maxima otherwise, and each moves them (docs/parity.md); in bfloat16 the
# sides differ by 0.11 in the first kernel, behind all layers, and both as much from float32 (benchmarks/RESULTS.md).
GRADIENT_TOLERANCE = {"float32": 5e-2, "tf32": 5e-2, "bfloat16": 2e-1}
# Of the second training step: the first one moved every parameter by the sign of its gradient, and rounding decides the
# sign of those near zero. A wrong rate, sign or decay differs by more.
SECOND_STEP_TOLERANCE = 1e-1
LARGEST_BATCH, LEAST_GAIN = 256, 1.03
ROOT = pathlib.Path(__file__).parents[1]


class Side:
    """A library in a process of its own (benchmarks/side.py), for `with` statements; `mode`: of torch.compile."""

    def __init__(self, library: str, mode: str = "", remat: bool = False) -> None:
        self.library, self.mode, self.remat = library, mode, remat
        command = [sys.executable, "-m", "benchmarks.side", library]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # it ends with its orders

    def ask(self, *order: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended: there is no answer
            print(json.dumps(order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.library}: its process ended; see its message above.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def make(self, part: str, config: Config, precision: str, folder: str) -> float:
        """Builds what is timed from the arrays in `folder`, and gives its FLOPs as JAX counts them."""
        model = dataclasses.replace(config.model, remat=self.remat or config.model.remat)
        return self.ask("make", part, self.mode, precision, to_dict(dataclasses.replace(config, model=model)), folder)


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the card
    accelerator = jax_side.on_accelerator()
    parts = args.parts or (PARTS if accelerator else PARTS[:-1])
    frames = [16] if args.quick else args.frames or ([256] if accelerator else [64, 256])
    repeats = args.repeats or (2 if args.quick else 20 if accelerator else 5)
    plans = {"pytorch": ("pytorch", ""), "torch.compile": ("pytorch", args.compile), "jax": ("jax", "")}
    if not args.compile:
        del plans["torch.compile"]
    rows: list[dict[str, Any]] = []
    for precision, count in itertools.product(args.dtype, frames):
        config = make_config(args, precision, count)
        fewer = accelerator and precision != "bfloat16" and not args.parts
        wanted = ("backbone", "step") if fewer else parts
        with contextlib.ExitStack() as stack:
            others = [part for part in wanted if part != "step"]
            sides = {name: stack.enter_context(Side(*plan)) for name, plan in plans.items() if others}
            for part in others:
                measure = find_best_batch if part == "batch" else functools.partial(compare, part)
                rows += measure(config, precision, sides, repeats)
        if "step" in wanted:
            rows += compare_step(config, precision, plans, repeats)
    if args.peak_tflops:
        rows = [row | {"utilisation": row["TFLOP/s"] / args.peak_tflops} for row in rows]
    report("The network in JAX against PyTorch", rows, args.output, jax=jax_side.describe(),
           torch=torch_side.describe())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all of them, batch on an accelerator only")
    parser.add_argument("--dtype", nargs="+", choices=list(TOLERANCE), default=["float32"])
    parser.add_argument("--frames", nargs="+", type=int, help="of a window; default 64 256, on an accelerator 256")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--compile", nargs="?", const="default", default="", metavar="MODE",
                        help="a further side by torch.compile; MODE as reduce-overhead")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device, adds a column of utilisation")
    parser.add_argument("--repeats", type=int, default=0, help="default 5, on an accelerator 20, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="small: RGB, 16 frames of 64 pixels, 2 stages, 2 repeats")
    parser.add_argument("--output", default="", help="JSON file to write")
    return parser.parse_args()


def make_config(args: argparse.Namespace, precision: str, frames: int) -> Config:
    size = ["data.crop_size=64", 'model.streams=["rgb"]', "model.num_stages=2"] if args.quick else []
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    config = apply_overrides(Config(), [*BASE, f"data.num_frames={frames}", f"data.stride_test={frames}",
                                        f"model.compute_dtype={dtype}", *size, *args.set])
    validate(config)
    return config


@functools.cache
def draw_states(config: Config) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same random variables by JAX's and by PyTorch's names."""
    state = jax_side.draw_state(config)
    return state, jax_side.to_torch(state)


def save_arrays(config: Config, folder: str) -> None:
    """What `Side.make` reads."""
    names = ("state_jax", "state_pytorch", "batch")
    for name, arrays in zip(names, (*draw_states(config), jax_side.draw_batch(config))):
        np.savez(pathlib.Path(folder, f"{name}.npz"), **arrays)  # type: ignore[arg-type]


def compare(part: str, config: Config, precision: str, sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """Checks that the sides of a part agree, and times them in turns: one row a side.

    A turn is two runs, of which the second counts, for in training steps follow one another: memory that a step has
    freed is dear to get anew after a pause, as long as the other side's turn (benchmarks/RESULTS.md).
    """
    shape = "x".join(map(str, (config.train.batch_size, config.data.num_frames, *[config.data.crop_size] * 2)))
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(config, folder)
        flops = {name: side.make(part, config, precision, folder) for name, side in sides.items()}["jax"]
        refuse_difference(sides, precision, f"{part}, {shape}, {precision}", pathlib.Path(folder, "outputs.npz"))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, side) in itertools.product(range(repeats), sides.items()):
        side.ask("run")
        seconds[name].append(side.ask("run"))
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    return [{"part": part, "input": shape, "dtype": precision, "side": name, "seconds": median[name],
             "to pytorch": median_ratio(times, seconds["pytorch"]), "to jax": median_ratio(times, seconds["jax"]),
             "frames/s": config.train.batch_size * config.data.num_frames / median[name],
             "TFLOP/s": flops / median[name] / 1e12} for name, times in seconds.items()]


def refuse_difference(sides: dict[str, Side], precision: str, where: str, path: pathlib.Path) -> None:
    """Runs every side twice, so that a training step shows its change too; ends the program where they differ."""
    tolerance = (GRADIENT_TOLERANCE if where.startswith("gradient") else TOLERANCE)[precision]
    for attempt in range(2):
        if attempt and where.startswith("step"):
            tolerance = max(tolerance, SECOND_STEP_TOLERANCE)
        outputs = {}
        for name, side in sides.items():
            side.ask("read", str(path))
            outputs[name] = dict(np.load(path))
        expected = outputs.pop("pytorch")
        for name, found in outputs.items():
            assert found.keys() == expected.keys(), (where, found.keys() ^ expected.keys())
            for key, value in expected.items():
                error = float(np.linalg.norm(found[key] - value) / np.linalg.norm(value))
                if not error <= tolerance:
                    sys.exit(f"{where}: {name} and pytorch differ by {error:.1e} in {key}, which is more than "
                             f"{tolerance}; they do not compute the same, so nothing was timed.")


def compare_step(config: Config, precision: str, plans: dict[str, tuple[str, str]], repeats: int
                 ) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of the training step, in processes that did nothing before, as their memory is measured too (Linux)."""
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(Side(*plan)) for name, plan in plans.items()}
        sides["jax, remat"] = stack.enter_context(Side("jax", remat=True))
        rows = compare("step", config, precision, sides, repeats)
        return add_peaks(rows, sides) if sys.platform == "linux" else rows


def add_peaks(rows: list[dict[str, Any]], sides: dict[str, Side]) -> list[dict[str, Any]]:
    """The same rows with the peak of each side, in MiB and as a share of PyTorch's."""
    peak = {name: side.ask("peak") / 2**20 for name, side in sides.items()}
    return [row | {"peak MiB": round(peak[row["side"]]), "peak to pytorch": peak[row["side"]] / peak["pytorch"]}
            for row in rows]


def find_best_batch(config: Config, precision: str, sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """Times the backbone with batches of 2, 4 and so on, until one side has no memory left or no side gains."""
    rows: list[dict[str, Any]] = []
    best: dict[str, float] = {}
    batch = 2
    while batch <= LARGEST_BATCH:
        larger = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch))
        try:
            new = compare("backbone", larger, precision, sides, repeats)
        except RuntimeError as error:  # of either library
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
                raise
            break
        rows += new
        rates = {row["side"]: row["frames/s"] for row in new}
        if not any(rate > LEAST_GAIN * best.get(side, 0.0) for side, rate in rates.items()):
            break
        best = {side: max(rate, best.get(side, 0.0)) for side, rate in rates.items()}
        batch *= 2
    return [row | {"part": "batch"} for row in rows]


if __name__ == "__main__":
    main()
