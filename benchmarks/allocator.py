"""What glibc's allocator costs a training step on a CPU, as it comes and as the Makefile sets it for `make demo`.

    python -m benchmarks.allocator [--config FILE] [--set group.field=value] [--quick] [--output allocator.json]

Each setting runs in processes of its own, for it acts from the start of one, in turns. CPU seconds are of all cores,
user and system; page faults are those that need no reading. Linux with glibc alone.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks.timing import report
from benchmarks.train_step import make_step
from sptad_jax.config import load_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAKEFILE = re.search(r"GLIBC_TUNABLES = (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
SETTINGS = {"as it comes": "", "make demo": MAKEFILE.group(1) if MAKEFILE else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each setting (default 5)")
    parser.add_argument("--quick", action="store_true", help="one process of each")
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.config, args.set)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(1 if args.quick else args.repeats):
        for name, tunables in SETTINGS.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--child", "--config", args.config,
                       *(word for change in args.set for word in ("--set", change))]  # fmt: skip
            done = subprocess.run(command, env=os.environ | {"GLIBC_TUNABLES": tunables}, cwd=ROOT, check=True,
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows: list[dict[str, Any]] = [
        {"allocator": name} | {key: float(np.median([row[key] for row in runs])) for key in runs[0]}
        for name, runs in found.items()
    ]
    report(f"Medians of a training step of {args.config}", rows, args.output, jax=jax.__version__)


def measure(config: str, changes: list[str], steps: int = 8) -> dict[str, float]:
    """Means over `steps` steps, after three that compile and fill the heap."""
    step = make_step(load_config(config, changes))
    for _ in range(3):
        step()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        step()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds / steps,
        "user CPU s": (after.ru_utime - before.ru_utime) / steps,
        "system CPU s": (after.ru_stime - before.ru_stime) / steps,
        "page faults": (after.ru_minflt - before.ru_minflt) / steps,
        "peak MiB": after.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
