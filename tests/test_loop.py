"""The training loop: order of events, exact resume after a kill, refusal of numbers that are not finite."""

import json
import signal
import types

import jax
import numpy as np
import pytest

from sptad_jax.errors import UserError
from sptad_jax.training import loop, sharding
from sptad_jax.training.checkpoints import Checkpoints
from sptad_jax.training.metrics import MetricWriter
from tests.reference.tiny_training import CONFIG, change, compiled_step, make_batch, new_state

NAMES = [f"video_{i}" for i in range(5)]
META = {"config": {}, "classes": ["a", "b"], "source": {}}
TOTAL = 8  # 4 epochs of 2 steps


class Killed(Exception):
    pass


class Batches:
    """Batch k is drawn from seed k; the state is k. `seen` records the windows given out."""

    def __init__(self, kill_at=None, poison_at=None):
        self.position, self.kill_at, self.poison_at, self.seen = 0, kill_at, poison_at, []

    def __next__(self):
        if self.position == self.kill_at:
            raise Killed
        batch = make_batch(self.position)
        if self.position == self.poison_at:
            batch["segments_norm"] = np.full_like(batch["segments_norm"], np.nan)
        rng = np.random.default_rng([self.position, 1])
        windows = {"video_index": rng.integers(0, 5, 4), "start_frame": rng.integers(0, 1000, 4)}
        self.seen.append(np.stack(list(windows.values())).tolist())
        self.position += 1
        return batch | windows

    def get_state(self):
        return {"next": self.position}

    def set_state(self, state):
        self.position = state["next"]
        return ""


def run(workdir, batches, config=CONFIG):
    """What a fresh process does: restore if there is a checkpoint, train, close. Returns the state."""
    workdir.mkdir(exist_ok=True)
    state = new_state(config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)
    if checkpoints.latest_step() is not None:
        state, data_state, _ = checkpoints.restore(state)
        batches.set_state(data_state)
    writer = MetricWriter(workdir, int(state.step) + 1)
    try:
        return loop.train(
            state, compiled_step(CONFIG), batches, config=config, mesh=sharding.make_mesh(4), steps_per_epoch=2,
            schedule=lambda step: 0.1 / (1 + step), checkpoints=checkpoints, writer=writer, meta=META,
            video_names=NAMES, evaluate=lambda state: pytest.fail("evaluated without being asked to"))  # fmt: skip
    finally:
        writer.close()
        checkpoints.close()


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    batches = Batches()
    state = run(workdir, batches)
    return workdir, state, batches.seen


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Killed while drawing the sixth batch; the checkpoint is that of step 3."""
    workdir = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        run(workdir, Batches(kill_at=5))
    batches = Batches()
    state = run(workdir, batches)
    return workdir, state, batches.seen


def test_resume_is_bit_equal(uninterrupted, resumed):
    """A moment, average, statistic, step or random key that is not restored exactly."""
    expected, found = uninterrupted[1], resumed[1]
    assert int(found.step) == int(expected.step) == TOTAL
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(
        jax.tree.leaves(new_state(CONFIG).params), jax.tree.leaves(found.params)))  # fmt: skip


def test_resume_sees_the_same_batches(uninterrupted, resumed):
    """An iterator saved after the next batch was drawn (one lost) or before its own (one twice)."""
    assert len(uninterrupted[2]) == TOTAL
    assert resumed[2] == uninterrupted[2][3:]


def test_resume_leaves_one_line_a_step(uninterrupted, resumed):
    """Lines of the killed process that stay beside the new ones; later lines that differ from an uninterrupted run."""
    whole, parts = read_lines(uninterrupted[0]), read_lines(resumed[0])
    assert [line["step"] for line in whole] == [line["step"] for line in parts] == [2, 4, 6, 8]
    assert parts[2:] == whole[2:] and parts[0] == whole[0]
    for line in parts:  # the k-th update is made with the rate of k - 1
        assert line["epoch"] == line["step"] / 2 and line["learning_rate"] == pytest.approx(0.1 / line["step"])


def test_finished_run_trains_no_further(uninterrupted):
    """A second start of a finished run that takes another step."""
    batches = Batches()
    state = run(uninterrupted[0], batches)
    assert batches.seen == [] and int(state.step) == TOTAL


def test_poisoned_batch_stops_without_a_bad_checkpoint(tmp_path):
    """NaN that trains on, an error that names neither step, term nor videos, or a checkpoint of the ruined state."""
    config = change(CONFIG, train={"checkpoint_every": 1, "log_every": 1, "epochs": 1.5})
    batches = Batches(poison_at=1)
    with pytest.raises(UserError) as raised:
        run(tmp_path, batches, config)
    message = str(raised.value)
    assert "step 2" in message and "loss_l1" in message and "nan" in message
    for index, name in enumerate(NAMES):
        assert (name in message) == (index in batches.seen[1][0]), name
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    assert checkpoints.latest_step() == 1
    state, data_state, _ = checkpoints.restore(new_state(config))
    assert data_state == {"next": 1}
    checkpoints.close()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state) if x.dtype.kind == "f")
    assert [line["step"] for line in read_lines(tmp_path)] == [1]
    # The run goes on once the cause is gone.
    assert int(run(tmp_path, Batches(), config).step) == 3


class Recorder:
    """A loop whose every part only notes that it was called."""

    def __init__(self, start=0, losses=None, signals=None, **train):
        self.events, self.losses, self.position, self.signals = [], losses or {}, start, signals or {}
        self.lines = []
        self.config = change(CONFIG, train={"epochs": 3.0, "checkpoint_every": 2, "log_every": 2, **train})
        self.state = types.SimpleNamespace(step=np.int32(start))

    def __next__(self):
        self.events.append(f"next {self.position}")
        self.position += 1
        return {"rgb": np.zeros(4, np.uint8), "video_index": np.array([1, 3, 3, 1]), "start_frame": np.zeros(4)}

    def get_state(self):
        return self.position

    def save(self, state, data_state, meta, average_map=None):
        assert meta is META and data_state == int(state.step)
        assert average_map == (0.125 if f"evaluate {state.step}" in self.events else None)
        self.events.append(f"save {state.step}")

    def wait(self):
        self.events.append("wait")

    def write(self, step, values):
        self.lines.append({"step": step, **values})
        self.events.append(f"write {step}")

    def evaluate(self, state):
        self.events.append(f"evaluate {state.step}")
        return {"map": {"0.5": 0.25}, "average_map": 0.125}

    def take_step(self, state, batch):
        assert batch.keys() == {"rgb"}, "the device gets what the step does not read"
        done = int(state.step) + 1
        self.events.append(f"step {done}")
        for number in self.signals.get(done, ()):
            signal.raise_signal(number)
        metrics = {"loss": self.losses.get(done, float(done)), "loss_l1": 0.5, "grad_norm": 1.0}
        return types.SimpleNamespace(step=np.int32(done)), metrics

    def run(self):
        return loop.train(
            self.state, self.take_step, self, config=self.config, mesh=sharding.make_mesh(4), steps_per_epoch=2,
            schedule=lambda step: step / 10, checkpoints=self, writer=self, meta=META, video_names=NAMES,
            evaluate=self.evaluate)  # fmt: skip


def test_order_of_events():
    """A checkpoint after the next batch is drawn, an evaluation of another state than the one saved, a log line that
    waits for nothing or is lost, an evaluation of the last state (train.py makes that) or none at all."""
    recorder = Recorder(evaluate_every=1.0, epochs=2.5)
    assert int(recorder.run().step) == 5
    assert recorder.events == [
        "next 0", "step 1", "next 1", "step 2", "write 2", "evaluate 2", "write 2", "save 2",
        "next 2", "step 3", "next 3", "step 4", "write 4", "evaluate 4", "write 4", "save 4",
        "next 4", "step 5", "save 5", "wait"]  # fmt: skip


def test_losses_are_read_one_step_late():
    """A loop that waits for each step before it gives the device the next one."""
    recorder = Recorder(checkpoint_every=100, epochs=2.0, log_every=1)
    recorder.run()
    assert recorder.events == ["next 0", "step 1", "next 1", "step 2", "write 1", "next 2", "step 3", "write 2",
                               "next 3", "step 4", "write 3", "write 4", "save 4", "wait"]  # fmt: skip


def test_restart_does_not_repeat_what_is_done():
    """The restored state evaluated and saved a second time."""
    recorder = Recorder(start=4, evaluate_every=1.0)
    recorder.run()
    assert recorder.events == ["next 4", "step 5", "next 5", "step 6", "write 6", "save 6", "wait"]


def test_evaluated_state_is_saved():
    """A best state that is gone because no checkpoint fell due at its step."""
    recorder = Recorder(evaluate_every=1.0, checkpoint_every=100)
    recorder.run()
    assert [event for event in recorder.events if event.startswith(("evaluate", "save"))] == [
        "evaluate 2", "save 2", "evaluate 4", "save 4", "save 6"]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_after_the_running_step(number):
    """A preempted run that dies without a checkpoint, draws a batch too many, evaluates first, saves a bad state, or
    returns before the checkpoint is on disk; handlers that stay behind."""
    before = signal.getsignal(number)
    recorder = Recorder(signals={4: [number]}, evaluate_every=1.0)
    assert int(recorder.run().step) == 4
    assert recorder.events[-4:] == ["step 4", "write 4", "save 4", "wait"]
    assert signal.getsignal(number) is before
    bad = Recorder(signals={4: [number]}, losses={4: float("nan")})
    with pytest.raises(UserError, match="step 4"):
        bad.run()
    assert "save 4" not in bad.events and signal.getsignal(number) is before


def test_signal_right_after_the_start_makes_one_step():
    """A run that is preempted again and again before its first step's end, and never gets further."""
    recorder = Recorder(start=2, signals={3: [signal.SIGTERM]})
    assert int(recorder.run().step) == 3


def test_second_ctrl_c_stops_at_once():
    """A user who cannot get out of a step that hangs."""
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    recorder = Recorder(signals={3: [signal.SIGINT, signal.SIGINT]})
    with pytest.raises(KeyboardInterrupt):
        recorder.run()
    assert recorder.events[-1] == "step 3"
    assert signal.getsignal(signal.SIGINT) is before


def test_log_lines_are_means():
    """The last value in the place of the mean, a sum that is not reset, a rate that is off by one step."""
    recorder = Recorder(evaluate_every=0.0)
    recorder.run()
    assert recorder.lines == [
        {"step": k, "loss": k - 0.5, "loss_l1": 0.5, "grad_norm": 1.0, "epoch": k / 2, "learning_rate": (k - 1) / 10}
        for k in (2, 4, 6)]  # fmt: skip


@pytest.mark.parametrize("step, names", [(2, "before a checkpoint"), (3, "between"), (6, "the last")])
def test_bad_step_is_neither_evaluated_nor_saved(step, names):
    """Losses are read late: a bad step right before a checkpoint, an evaluation or the end must be found before."""
    recorder = Recorder(losses={step: float("inf")}, evaluate_every=1.0)
    with pytest.raises(UserError, match=f"step {step}: loss became inf on windows of video_1, video_3;"):
        recorder.run()
    assert f"save {step}" not in recorder.events and f"evaluate {step}" not in recorder.events
    assert f"step {step + 2}" not in recorder.events


def test_number_of_steps():
    """Half epochs cut off, or a short one that makes no step at all."""
    def count(epochs, steps_per_epoch):
        return loop.num_steps(change(CONFIG, train={"epochs": epochs}), steps_per_epoch)

    assert [count(16.0, 10), count(2.5, 3), count(0.01, 3), count(0.4, 5)] == [160, 8, 1, 2]


def test_summary_of_an_evaluation():
    """A threshold that is missing in metrics.jsonl."""
    results = {"map": {"0.3": 0.5, "0.7": 0.1}, "average_map": 0.3, "per_class": {}}
    assert loop.summarise(results) == {"eval_average_map": 0.3, "eval_map_0.3": 0.5, "eval_map_0.7": 0.1}
