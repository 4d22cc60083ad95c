"""Kills a training with SIGKILL at random moments, starts it again each time, and compares its end with one left alone.

    python -m data_prep.demo --config configs/demo.py
    python -m benchmarks.kill_training --config configs/demo.py --set train.epochs=0.2 --set train.checkpoint_every=5
    python -m benchmarks.kill_training --config FILE --kills 3 --workdir runs/kills [--output kills.json]

One start in five is killed at a moment drawn evenly from the time until the first step, the others after a number of
steps drawn evenly up to two checkpoints, so that some kills hit imports, compilation, restoring and the writing of a
checkpoint in the background. Every step's loss is logged: a batch
that is repeated or skipped changes it. The exit code is 0 when losses, arrays and detections are equal bit for bit.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import jax

from benchmarks.timing import report
from sptad_jax.training.checkpoints import load_arrays

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/kills"), help="a new folder")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True)
    options = [part for option in (*args.set, "train.log_every=1") for part in ("--set", option)]
    command = [sys.executable, "train.py", "--config", args.config, *options, "--workdir"]
    whole, killed = args.workdir / "whole", args.workdir / "killed"
    startup = run_whole(command, whole)
    interval = json.loads((whole / "config.json").read_text())["train"]["checkpoint_every"]
    rng = random.Random(args.seed)
    rows = []
    for _ in range(args.kills):
        early = rng.random() < 0.2
        rows.append(kill_once(command, killed, rng.uniform(0, startup) if early else 1e6, rng.randint(1, 2 * interval)))
    subprocess.run([*command, killed.resolve()], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    checks = compare(whole, killed)
    steps = [step for row in rows if isinstance(step := row["restored step"], int)]
    checks["never went back"] = steps == sorted(steps)
    report(f"{args.kills} kills of {args.config}", rows, args.output, jax=jax.__version__, **checks)
    return 0 if all(checks.values()) else 1


def run_whole(command: list[str], workdir: pathlib.Path) -> float:
    """An uninterrupted training; -> seconds from its start to its first step."""
    start, startup = time.monotonic(), 0.0
    with subprocess.Popen([*command, workdir.resolve()], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            if line.startswith("train ") and not startup:
                startup = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{workdir}: the training that nobody killed failed with exit code {process.returncode}")
    return startup


def kill_once(command: list[str], workdir: pathlib.Path, seconds: float, steps: int) -> dict[str, object]:
    """Starts the training, kills it after `seconds` or `steps`; -> from which step it went on, and how far it came."""
    start, resumed, done = time.monotonic(), "", 0
    with subprocess.Popen([*command, workdir.resolve()], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        for line in process.stdout or ():
            if line.startswith("resumed at step "):
                resumed = line.split()[3]
            done += line.startswith("train ")
            if done == steps:
                process.kill()
        timer.cancel()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"{workdir}: exit code {process.returncode} before the kill; raise train.epochs, or see why.")
    return {"seconds": round(time.monotonic() - start, 2), "restored step": int(resumed) if resumed else "",
            "steps made": done}


def read_losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def compare(whole: pathlib.Path, killed: pathlib.Path) -> dict[str, bool]:
    """What must be equal bit for bit."""
    arrays, others = (load_arrays((folder / "checkpoints").resolve()) for folder in (whole, killed))
    same = [(folder / "detections.json").read_bytes() for folder in (whole, killed)]
    return {
        "arrays equal": arrays.keys() == others.keys()
        and all(value.tobytes() == others[path].tobytes() for path, value in arrays.items()),
        "losses of all steps equal": read_losses(whole) == read_losses(killed),
        "detections equal": same[0] == same[1],
    }


if __name__ == "__main__":
    sys.exit(main())
