"""How cost grows: the forward pass against window length and number of proposals, post-processing against video length.

    python -m benchmarks.growth [--config FILE] [--set group.field=value] [--quick] [--output growth.json]
        [--plot growth.svg]

The exponent is the slope of a line through the logarithms of cost and size: 1 is linear growth. Memory is what the
compiled program allocates besides arguments and results.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import report, time_in_turns
from sptad_jax.config import CHANNELS, Config, load_config
from sptad_jax.inference.postprocess import windows_to_detections
from sptad_jax.models.conv3d import fit_to_device
from sptad_jax.models.sptad import SPTAD
from sptad_jax.training.step import init_variables

NUM_CLASSES = 20
FRAMES, PROPOSALS = (64, 128, 256, 512, 1024, 2048), (25, 50, 100, 200, 400)
HOURS: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/custom.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, the three smallest sizes")
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--plot", default="", help="picture to draw (needs matplotlib)")
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    count, repeats = (3, 1) if args.quick else (None, args.repeats)

    rows = grow("frames of a window", FRAMES[:count], repeats, lambda n: with_frames(config, n))
    rows += grow("proposals", PROPOSALS[:count], repeats, lambda n: with_proposals(config, n))
    work = {hours: make_postprocessing(config, hours) for hours in HOURS[:count]}
    seconds = time_in_turns({str(hours): run for hours, run in work.items()}, repeats)
    rows += [{"axis": "hours of video", "size": hours, "seconds": float(np.median(seconds[str(hours)])), "MiB": 0.0}
             for hours in work]

    exponents = {f"{axis}: exponent of {cost}": exponent(rows, axis, cost)
                 for axis in dict.fromkeys(row["axis"] for row in rows) for cost in ("seconds", "MiB")
                 if axis != "hours of video" or cost == "seconds"}
    report(f"Growth of cost, {args.config}", rows, args.output, jax=jax.__version__,
           device=jax.devices()[0].device_kind, **exponents)
    if args.plot:
        draw(rows, exponents, args.plot)


def with_frames(config: Config, frames: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, num_frames=frames))


def with_proposals(config: Config, proposals: int) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_proposals=proposals))


def grow(axis: str, sizes: tuple[int, ...], repeats: int, change: Callable[[int], Config]) -> list[dict[str, Any]]:
    """Times the forward pass of one window at every size, in turns."""
    compiled = {size: make_forward(change(size)) for size in sizes}
    seconds = time_in_turns({str(size): run for size, (run, _) in compiled.items()}, repeats)
    return [{"axis": axis, "size": size, "seconds": float(np.median(seconds[str(size)])), "MiB": mib}
            for size, (_, mib) in compiled.items()]


def make_forward(config: Config) -> tuple[Callable[[], Any], float]:
    """A function that runs one window through the detector, and the MiB that its program allocates."""
    model_config, compiler_options = fit_to_device(config.model)
    model = SPTAD(model_config, NUM_CLASSES)
    variables = draw_variables(with_frames(config, FRAMES[0]))
    shape = (1, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    inputs = {name: jnp.zeros((*shape, CHANNELS[name])) for name in config.model.streams}
    forward = jax.jit(lambda v, x: model.apply(v, x, None, train=False)[0], compiler_options=compiler_options)
    program = forward.lower(variables, inputs).compile()
    memory: Any = program.memory_analysis()
    return (lambda: jax.block_until_ready(program(variables, inputs))), memory.temp_size_in_bytes / 2**20


@functools.cache
def draw_variables(config: Config) -> Any:
    """Random ones; they are the same for any window."""
    return init_variables(config, NUM_CLASSES)


def make_postprocessing(config: Config, hours: float) -> Callable[[], Any]:
    """A function that turns the proposals of a video of that length into detections: scores as a trained model's."""
    rng = np.random.default_rng(0)
    fps, stride = 10.0, config.data.stride_test
    windows = round(hours * 3600 * fps / stride)
    shape = (windows, config.model.num_proposals * (2 if config.inference.mirror else 1))
    probability = rng.beta(0.1, 3.0, (*shape, NUM_CLASSES))
    segments = np.sort(rng.random((*shape, 2)), axis=-1)
    found = {"class_prob": probability, "segments_norm": segments, "start_frame": np.arange(windows) * stride}
    names = tuple(f"class {i}" for i in range(NUM_CLASSES))
    return lambda: windows_to_detections(found, duration_sec=hours * 3600, fps=fps, config=config, classes=names)


def exponent(rows: list[dict[str, Any]], axis: str, cost: str) -> float:
    sizes, costs = zip(*[(row["size"], row[cost]) for row in rows if row["axis"] == axis])
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def draw(rows: list[dict[str, Any]], exponents: dict[str, float], path: str) -> None:
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for ax, axis in zip(figure.subplots(1, len(axes)), axes):
        sizes, seconds = zip(*[(row["size"], row["seconds"]) for row in rows if row["axis"] == axis])
        ax.loglog(sizes, seconds, "o-", color="#1f5fa8")
        ax.loglog(sizes, seconds[0] * np.array(sizes) / sizes[0], "--", color="#999999", linewidth=1)
        ax.annotate("linear", (sizes[-1], seconds[0] * sizes[-1] / sizes[0]), color="#777777", fontsize=8,
                    ha="right", va="bottom")
        ax.set(xlabel=axis, ylabel="seconds", title=f"exponent {exponents[f'{axis}: exponent of seconds']:.2f}")
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
