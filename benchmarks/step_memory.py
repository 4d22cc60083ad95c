"""Peak memory of the training step of one side, in a process of its own; benchmarks/pytorch.py starts it.

    python -m benchmarks.step_memory {jax,pytorch} FOLDER

FOLDER holds config.json, state.npz and batch.npz. Prints bytes: on an accelerator the most that the library allocated,
on a CPU (Linux) the largest resident set of the process during three steps after the first, which compiles.
"""

import ctypes
import importlib
import json
import pathlib
import re
import sys

import numpy as np

from sptad_jax.config import from_dict

MODULES = {"jax": "benchmarks.jax_side", "pytorch": "benchmarks.torch_side"}


def main() -> None:
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    side = importlib.import_module(MODULES[name])
    made = side.make_step(from_dict(json.loads((folder / "config.json").read_text())),
                          *(dict(np.load(folder / file)) for file in ("state.npz", "batch.npz")))
    run = made[0] if isinstance(made, tuple) else made
    run()
    forget_peak()
    for _ in range(3):
        run()
    print(side.peak_bytes() or peak_resident())


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
