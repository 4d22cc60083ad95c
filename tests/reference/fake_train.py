"""Stands in for train.py in the tests of `sptad study`: takes its options and leaves its files, without training.

mAP at tIoU t is (stages + seed^2) / 20 - t / 100. FAKE_TRAIN, JSON {part of a work folder's path: fault}, makes a start
go wrong: "fail" (an error), "kill" (SIGKILL after an evaluation during training), "stop" (the same, but exit code 0, as
after SIGTERM), "wait" (trains on until SIGTERM).
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import time

from sptad_jax.config import load_config, to_dict


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    faults = json.loads(os.environ.get("FAKE_TRAIN", "{}"))
    fault = next((fault for part, fault in faults.items() if part in str(args.workdir)), None)
    print(f"train 1/2\rtrain 2/2\nseed {config.train.seed}", flush=True)
    with (args.workdir / "starts.txt").open("a") as stream:
        stream.write(f"{fault}\n")
    if fault == "fail":
        print("error: data.dataset_dir: there is none.", file=sys.stderr)
        return 2
    level = (config.model.num_stages + config.train.seed**2) / 20
    values = {f"{tiou:g}": level - tiou / 100 for tiou in config.evaluation.tious}
    results = {"map": values, "average_map": sum(values.values()) / len(values)}
    (args.workdir / "config.json").write_text(json.dumps(to_dict(config)))
    (args.workdir / "results.json").write_text(json.dumps(results))
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "wait":
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        (args.workdir / "waiting").touch()
        deadline = time.monotonic() + 60  # no process is left behind where nobody sends it
        while not stopped and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)  # a checkpoint takes its time
        (args.workdir / "saved").touch()
    if fault is None:
        (args.workdir / "run.json").write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
