"""One side of benchmarks/pytorch.py, in a process of its own.

    python -m benchmarks.side {jax,pytorch}

In one process the libraries' allocators get in each other's way: on a CPU JAX's training step took 1.2 times as long.
Answers orders, JSON on lines of standard input, by JSON on lines of standard output: {"value": ...}, or {"error": text}
where the library raises RuntimeError, as both do when memory ends.

    ["make", part, mode, precision, config, folder]  builds what is timed, from state_jax.npz or state_pytorch.npz and
                                                     batch.npz in the folder; gives its FLOPs, PyTorch 0
    ["run"]                                          seconds of one run
    ["read", path]                                   runs, and writes what was computed to the .npz file
    ["peak"]                                         bytes that a run needs at most: on an accelerator what the library
                                                     allocated, on a CPU (Linux) the largest resident set in three runs
"""

import ctypes
import gc
import importlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from sptad_jax.config import from_dict

MODULES = {"jax": "benchmarks.jax_side", "pytorch": "benchmarks.torch_side"}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    library = sys.argv[1]
    side = importlib.import_module(MODULES[library])
    run: Callable[[], dict[str, Any]] = dict
    for line in sys.stdin:
        order, *details = json.loads(line)
        value: Any = None
        try:
            if order == "make":
                run = dict  # the last one's memory is needed
                gc.collect()
                run, value = make(side, library, *details)
            elif order == "run":
                start = time.perf_counter()
                run()
                value = time.perf_counter() - start
            elif order == "read":
                np.savez(details[0], **side.read(run()))
            else:
                value = measure_peak(side, run)
            answer = {"value": value}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def make(side: ModuleType, library: str, part: str, mode: str, precision: str, config: dict[str, Any],
         folder: str) -> tuple[Callable[[], dict[str, Any]], float]:
    side.set_precision(precision)
    options = from_dict(config)
    state, data = (dict(np.load(pathlib.Path(folder, f"{name}.npz"))) for name in (f"state_{library}", "batch"))
    if part in ("backbone", "gradient"):
        size = options.data.crop_size
        data = data["rgb"][:, :, :size, :size] * np.float32(2 / 255) - 1
    made = getattr(side, f"make_{part}")(options, state, data, *([mode] if mode else []))
    return made if isinstance(made, tuple) else (made, 0.0)


def measure_peak(side: ModuleType, run: Callable[[], dict[str, Any]]) -> int:
    run()  # the first compiles
    forget_peak()
    for _ in range(3):
        run()
    return side.peak_bytes() or peak_resident()


def forget_peak() -> None:
    """Gives what compilation freed back to the system, and lets the peak count from here on."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def peak_resident() -> int:
    """VmHWM in bytes; getrusage would count the parent's memory, of which a child starts as a copy."""
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return int(kib) * 1024


if __name__ == "__main__":
    main()
