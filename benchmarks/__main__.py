"""The series: what compares and profiles without a video or a trained detector, one after the other, in one command.

    python -m benchmarks [--quick] [--only NAME ...] [--peak-tflops 989] [--output FOLDER]

Each is a process of its own and writes NAME.json into the folder. One that fails is named at the end, the others go on.
All run where jax, flax, optax, numpy, scipy and torch (extra [parity]) are all there is. On an accelerator the
comparison with PyTorch covers float32, tf32 and bfloat16, and `torch.compile`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

from benchmarks import jax_side

SERIES = ("pytorch", "components", "step_profile", "matching", "optical_flow", "growth", "evaluation")
ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERIES, default=SERIES, help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats, to see that all runs")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device, for its utilisation")
    parser.add_argument("--output", default="runs/benchmarks", help="folder (default %(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process holds the accelerator, too
    widest = ["--dtype", "float32", "tf32", "bfloat16", "--compile"] if jax_side.on_accelerator() else []
    options = {"pytorch": [*widest, "--peak-tflops", str(args.peak_tflops)]}
    failed = []
    begin = time.monotonic()
    for name in args.only:
        command = [sys.executable, "-m", f"benchmarks.{name}", *options.get(name, []), *["--quick"] * args.quick,
                   "--output", str(pathlib.Path(args.output, f"{name}.json").absolute())]
        print("$", "python", *command[1:], flush=True)
        start = time.monotonic()
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s\n", flush=True)
    print(f"{len(args.only)} benchmarks in {(time.monotonic() - begin) / 60:.1f} minutes; JSON in {args.output}")
    if failed:
        sys.exit(f"These failed, see their messages above: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
