"""Where the time of a training step goes, by part of the detector.

    python -m benchmarks.step_profile [--config FILE] [--set group.field=value] [--quick] [--output step_profile.json]

`jax.profiler` times each operation of the compiled step, `jax.named_scope` says to which part it belongs; gradients
count to the part whose they are. On a CPU the times are those of threads, so that on two cores they add up to more than
the step takes. An operation that XLA made out of several parts counts to the one that its last piece comes from, and
one that lost its name (products that go to YNNPACK) to the part of what it reads.
"""

import argparse
import collections
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterable
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.timing import report
from benchmarks.train_step import NUM_CLASSES, random_batch
from sptad_jax.config import Config, load_config
from sptad_jax.training.optimizer import make_optimizer
from sptad_jax.training.step import create_state, init_variables, make_train_step

# The first pattern that is found in an operation's scopes names its part.
PARTS = {
    "max pools": r"/max_pool\b",
    "stem": r"/Conv3d_[12]",
    "inception blocks": r"/Mixed_",
    "rest of the backbones": r"backbone_\w+/",
    "temporal FPN": r"/temporal_fpn/",
    "SoI Align": r"/soi_align/",
    "self-attention": r"/self_attention/",
    "dynamic convolution": r"/sparse_interaction/",
    "feed-forward network": r"/feed_forward/",
    "classes and segments": r"/branches/",
    "rest of the detection head": r"/detection_head/",
    "classification head": r"/classification_head/",
    "matching": r"\bmatching\b",
    "losses": r"\blosses\b",
    "optimizer": r"\boptimizer\b",
    "augmentation": r"\baugmentation\b",
    "in no scope": "",
}
_OPERATION = re.compile(r"%([\w.-]+) = [^\n]*? (?!parameter\()[\w-]+\(([^)\n]*)\)([^\n]*)")  # name, operands, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/custom.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--steps", type=int, default=5, help="steps to profile, after two that are not (default 5)")
    parser.add_argument("--quick", action="store_true", help="one step")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    steps = 1 if args.quick else args.steps
    seconds, scopes = profile_step(load_config(args.config, args.set), steps)
    parts = sum_parts(seconds, scopes)
    total = sum(parts.values())
    rows = [{"part": name, "ms a step": 1e3 * value / steps, "share": value / total}
            for name, value in sorted(parts.items(), key=lambda item: -item[1])]
    report(f"Training step of {args.config}", rows, args.output, jax=jax.__version__,
           device=jax.devices()[0].device_kind, total_ms_a_step=1e3 * total / steps)


def profile_step(config: Config, steps: int) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds in each operation of the compiled step, summed over `steps`, and each operation's scopes."""
    variables = init_variables(config, NUM_CLASSES)
    tx, _, _ = make_optimizer(variables["params"], config, 100)
    state, batch = create_state(variables, tx, config), jax.device_put(random_batch(config))
    program = make_train_step(config, NUM_CLASSES, tx, None).lower(state, batch).compile()  # type: ignore[attr-defined]
    for _ in range(2):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, _ = program(state, batch)
            jax.block_until_ready(state)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = ProfileData.from_file(str(path))
    return sum_operations(profile), read_scopes(program.as_text())


def read_scopes(program: str) -> dict[str, str]:
    """The scopes of each operation of an XLA program, which names operands before what reads them."""
    scopes: dict[str, str] = {}
    for name, operands, rest in _OPERATION.findall(program):
        found = re.search(r'op_name="([^"]*)"', rest)
        inherited = (scopes.get(operand, "") for operand in re.findall(r"%([\w.-]+)", operands))
        scopes[name] = found[1] if found else next(filter(None, inherited), "")
    return scopes


def sum_operations(profile: ProfileData) -> dict[str, float]:
    """Seconds in each operation of XLA, without those in operations that it called."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    seconds: dict[str, float] = collections.defaultdict(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the bindings: a type without __module__
        for plane in devices or planes:
            lines = list(plane.lines)
            for line in [line for line in lines if line.name == "XLA Ops"] or lines:
                events = [(event.start_ns, event.start_ns + event.duration_ns, dict(event.stats).get("hlo_op"))
                          for event in line.events]
                for name, spent_ns in own_times([event for event in events if event[2]]):
                    seconds[name.split("__onednn$")[0]] += spent_ns * 1e-9  # what follows is not in the program
    return seconds


def own_times(events: Iterable[tuple[float, float, Any]]) -> list[tuple[Any, float]]:
    """(start, end, name) of one thread, nested or apart -> (name, time in it and in no event within it)."""
    found: list[tuple[Any, float]] = []
    open_events: list[tuple[float, int]] = []  # end, place in `found`
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        if open_events:
            outer = open_events[-1][1]
            found[outer] = found[outer][0], found[outer][1] - (end - start)
        open_events.append((end, len(found)))
        found.append((name, end - start))
    return found


def sum_parts(seconds: dict[str, float], scopes: dict[str, str]) -> dict[str, float]:
    """The seconds of operations, added up by PARTS."""
    parts: dict[str, float] = collections.defaultdict(float)
    for name, spent in seconds.items():
        scope = scopes.get(name, "")
        parts[next(part for part, pattern in PARTS.items() if re.search(pattern, scope))] += spent
    return parts


if __name__ == "__main__":
    main()
