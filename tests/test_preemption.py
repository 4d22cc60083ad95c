"""Two processes that train as one: a signal to one of them, and what becomes of one when the other ends."""

import json
import time

import pytest

from sptad_jax.training.checkpoints import load_arrays
from tests.reference import processes
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.test_distributed import CONFIG, arguments, difference, read_losses

# Process VICTIM meets its EVENT when it draws batch 6; until then and after it, batches come slowly.
PROGRAM = """
import os, signal, sys, time, train
from sptad_jax.data.pipeline import TrainingBatches
from sptad_jax.errors import UserError
from sptad_jax import launch
draw = TrainingBatches.__next__
def slow(self):
    time.sleep(0.2)
    if self.get_state()["step"] == 6 and os.environ["PROCESS"] in os.environ["VICTIM"]:
        if os.environ["EVENT"] == "refuse":
            raise UserError("this process alone cannot read its record")
        os.kill(os.getpid(), getattr(signal, os.environ["EVENT"]))
    return draw(self)
TrainingBatches.__next__ = slow
launch.leave(train.main)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preemption")
    path = folder / "tiny.py"
    text = CONFIG.format(dataset=str(make_tiny_dataset(folder)), rate=1e-4)
    # a quarter of the windows in each of as many steps; and a program that calls SciPy is not kept for the next process
    for old, new in (("epochs=10.0, batch_size=16", "epochs=2.5, batch_size=4"),
                     ("inference=", 'loss=LossConfig(matcher="optax"), inference=')):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run_two(config, cache, workdir, victim, event):
    """-> (exit code, standard output, standard error) of both processes, and the seconds between their ends."""
    children = processes.start([arguments(config, workdir)], cache, processes=2, program=PROGRAM,
                               variables={"VICTIM": victim, "EVENT": event})  # fmt: skip
    ends = {}
    deadline = time.monotonic() + 600
    while len(ends) < 2 and time.monotonic() < deadline:
        ends |= {i: time.monotonic() for i, child in enumerate(children) if i not in ends and child.poll() is not None}
        time.sleep(0.05)
    results = processes.finish(children, timeout=5)
    return results, abs(ends[0] - ends[1])


@pytest.mark.parametrize("event, victim", [("SIGTERM", "1"), ("SIGINT", "01")])
def test_signal_stops_all_at_one_step(config, cache, tmp_path, event, victim):
    """A preempted host that stops alone, while the others wait for it; two checkpoints of different steps; an exit code
    that tells the scheduler of a failure. Gone on with by one process alone, the run ends as if nothing had been."""
    results, _ = run_two(config, cache, tmp_path / "run", victim, event)
    assert [code for code, _, _ in results] == [0, 0], results
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()
               and int(path.name) != 10]  # fmt: skip
    assert 7 <= step < 20
    assert f"stopped by a signal after step {step} of 20: resume with the same command" in results[0][1]
    (out,) = processes.run([arguments(config, tmp_path / "run"), arguments(config, tmp_path / "whole")], cache)
    assert "the same batches are now read by others: processes 2 -> 1" in out and f"resumed at step {step}" in out
    expected, found = read_losses(tmp_path / "whole"), read_losses(tmp_path / "run")
    assert list(found) == list(expected) and max(abs(found[k] / expected[k] - 1) for k in found) <= 1e-5
    arrays = [load_arrays(tmp_path / name / "checkpoints") for name in ("whole", "run")]
    assert difference(*arrays) <= 1e-5 and difference(*arrays, "optimizer/") <= 5e-5
    assert json.loads((tmp_path / "run" / "results.json").read_text())["num_videos"] == 1


@pytest.mark.parametrize("event, victim", [("SIGKILL", "1"), ("SIGKILL", "0"), ("refuse", "1")])
def test_survivor_ends_within_a_minute(config, cache, tmp_path, event, victim):
    """One process is killed, or ends with an error of its own: the other hangs in a sum over devices for ever, or ends
    without a word on why."""
    results, seconds = run_two(config, cache, tmp_path, victim, event)
    code, _, err = results[1 - int(victim)]
    assert code != 0 and seconds < 60
    assert "cannot go on with the others" in err or "another task died" in err or "distributed service" in err, err
    assert results[int(victim)][0] == (2 if event == "refuse" else -9)
    if event == "refuse":
        assert "error: this process alone cannot read its record" in results[int(victim)][2]
