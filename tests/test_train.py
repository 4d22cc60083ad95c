"""train.py from the command line to the report: what it writes, how it resumes, and what it refuses."""

import gc
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import train
from sptad_jax.data.pipeline import TrainingBatches
from sptad_jax.training.checkpoints import load_for_inference
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.reference.tiny_training import quick_compilation

CONFIG = '''
from sptad_jax.config import *

def get_config():
    return Config(
        model=ModelConfig(
            streams=("rgb",), end_points=("Conv3d_2b_1x1",), width_multiplier=0.0625, pyramid="single", hidden_dim=16,
            num_proposals=4, proposal_init="grid", soi_bins=2, num_heads=2, dynamic_dim=4, ffn_dim=16, num_stages=1,
            bn_mode="train", dropout=0.1),
        loss=LossConfig(matcher="optax"),
        data=DataConfig(dataset_dir={dataset!r}, train_subset="training", test_subset="testing", num_frames=16,
                        crop_size=16, stride_train=8, stride_test=8, max_targets=4, read_threads=0),
        train=TrainConfig(epochs=6.0, batch_size=4, learning_rate=1e-2, ema_decay=0.5, log_every=1,
                          checkpoint_every=3),
        inference=InferenceConfig(min_score=0.0, nms="none", batch_size=4))
'''


class Killed(BaseException):
    """A process that ends at once, as far as one can simulate that in a test."""


@pytest.fixture(scope="module", autouse=True)
def shared_compilation(tmp_path_factory):
    """Each start of train.py compiles the same programs: they are kept on disk between the starts."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with quick_compilation():
        yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def config(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(dataset=str(dataset)))
    return path


def start(config, workdir, *more):
    return train.main(["--config", str(config), "--workdir", str(workdir), *more])


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run without interruption, and the windows that it saw."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        assert start(config, workdir) == 0
    return workdir, seen


def watch(patch, kill_at=None, checkpoint=None, interrupt_at=None, number=None):
    """Records the windows of each batch; optionally ends the process when a batch is drawn, and a checkpoint there, or
    sends it a signal then."""
    seen = []
    draw = TrainingBatches.__next__

    def noted(self):
        if len(seen) == kill_at:
            deadline = time.monotonic() + 60
            while not checkpoint.exists() and time.monotonic() < deadline:  # it is written in the background
                time.sleep(0.01)
            raise Killed
        if len(seen) == interrupt_at:
            signal.raise_signal(number)
        batch = draw(self)
        seen.append(np.stack([batch["video_index"], batch["start_frame"]]).tolist())
        return batch

    patch.setattr(TrainingBatches, "__next__", noted)
    return seen


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def refused(capsys, code):
    """One line on standard error, exit code 2; returns the line."""
    assert code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_everything_is_written(finished, dataset):
    """A promised file that is missing, or that holds other numbers than its neighbours."""
    workdir, seen = finished
    steps = len(seen)
    lines = read_lines(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6] and steps == 6
    assert lines[steps - 1]["epoch"] == pytest.approx(6.0) and np.isfinite(lines[0]["loss"])
    assert json.loads((workdir / "config.json").read_text())["model"]["hidden_dim"] == 16
    results = json.loads((workdir / "results.json").read_text())
    assert results["average_map"] == lines[-1]["eval_average_map"] and next(iter(results["map"])) == "0.3"
    assert results["num_videos"] == 1 and results["num_ground_truth"] == 1
    found = json.loads((workdir / "detections.json").read_text())["results"]
    # 8 windows of 4 proposals and 2 classes; "jump" does not occur in the ground truth
    assert found.keys() == {"unseen"} and len(found["unseen"]) == 64
    assert (results["num_detections"], results["num_ignored_detections"]) == (32, 32)
    assert any((workdir / "tensorboard").iterdir())
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert saved[-1] == steps and len(saved) == 2
    assert json.loads((workdir / "run.json").read_text())["steps"] == steps
    analysis = json.loads((workdir / "analysis.json").read_text())
    assert (analysis["num_ground_truth"], analysis["num_detections"], analysis["subset"]) == (1, 32, results["subset"])
    page = (workdir / "report" / "index.html").read_text()
    assert "unseen" in page and "data:image" in page and "What each kind of error costs" in page
    _, meta = load_for_inference(workdir)
    assert meta["classes"] == ["jump", "run"] and meta["source"]["frame_size"] == 36


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a killed process closes nothing
def test_killed_run_resumes_bit_for_bit(finished, config, tmp_path, capsys):
    """Other batches, random numbers or moments after a restart: every later loss and the detections are compared."""
    workdir, whole = finished
    with pytest.MonkeyPatch.context() as patch:
        first = watch(patch, kill_at=4, checkpoint=tmp_path / "checkpoints" / "3")
        with pytest.raises(Killed):
            start(config, tmp_path)
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        second = watch(patch)
        assert start(config, tmp_path) == 0
    assert "resumed at step 3" in capsys.readouterr().out
    assert first == whole[:4] and second == whole[3:]
    assert read_lines(tmp_path) == read_lines(workdir)
    for name in ("detections.json", "results.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(finished, config, tmp_path, capsys, number):
    """A preempted run that loses steps, exits as if it had failed, evaluates or reports half a training, or does not
    say how to go on; one that repeats or skips a batch afterwards."""
    workdir, whole = finished
    with pytest.MonkeyPatch.context() as patch:
        first = watch(patch, interrupt_at=4, number=number)
        assert start(config, tmp_path) == 0
    out = capsys.readouterr().out
    assert "stopped by a signal after step 5 of 6: resume with the same command" in out
    assert not (tmp_path / "results.json").exists() and (tmp_path / "checkpoints" / "5").is_dir()
    with pytest.MonkeyPatch.context() as patch:
        second = watch(patch)
        assert start(config, tmp_path) == 0
    assert "resumed at step 5" in capsys.readouterr().out
    assert first + second == whole
    assert read_lines(tmp_path) == read_lines(workdir)
    assert (tmp_path / "detections.json").read_bytes() == (workdir / "detections.json").read_bytes()


def test_second_start_only_evaluates(finished, config, capsys):
    """A finished run that trains further, changes its results, or gathers the same line of metrics again and again."""
    workdir, _ = finished
    files = [workdir / name for name in ("detections.json", "results.json", "metrics.jsonl")]
    before = [path.read_bytes() for path in files]
    for options in ((), ("--evaluate-only",)):
        (workdir / "results.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            seen = watch(patch)
            assert start(config, workdir, *options) == 0
        assert seen == [] and [path.read_bytes() for path in files] == before
    assert "resumed at step" in capsys.readouterr().out


def test_evaluation_alone_disturbs_no_training(finished, config, tmp_path, capsys):
    """Evaluated while it trains, a run that loses the metrics after its newest checkpoint, the checkpoint it is just
    writing, a damaged one's name, or its own options."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "loss": 1.0}\n')
    (workdir / "checkpoints" / "99.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "7").mkdir()
    kept = [workdir / "config.json", *(path for path in (workdir / "checkpoints").rglob("*") if path.is_file())]
    before = {path: path.read_bytes() for path in kept}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert start(config, workdir, "--evaluate-only", "--set", "inference.nms=hard") == 0
    assert {path: path.read_bytes() for path in kept} == before
    assert (workdir / "metrics.jsonl").read_text().splitlines()[:len(lines)] == lines
    assert (workdir / "checkpoints" / "99.orbax-checkpoint-tmp").is_dir() and (workdir / "checkpoints" / "7").is_dir()


def test_going_on_needs_no_pretrained_weights(finished, config, tmp_path, capsys):
    """A preempted run that is refused on a node without the weights it began from: its checkpoint holds them all."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    assert start(config, workdir, "--set", "train.pretrained_rgb=gone.npz") == 0
    assert "gone.npz" in refused(capsys, start(config, tmp_path / "new", "--set", "train.pretrained_rgb=gone.npz"))


def test_other_options_on_an_old_run(finished, config, tmp_path, capsys):
    """Another architecture, optimiser or class list on the checkpoints of a run: a traceback, or its config.json
    overwritten with what its checkpoints are not."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = (workdir / "config.json").read_bytes()
    assert start(config, workdir, "--set", "model.ffn_dim=8") == 2
    err = capsys.readouterr().err
    assert "ffn" in err and "another --workdir" in err and "Traceback" not in err
    assert "checkpoint" in refused(capsys, start(config, workdir, "--set", "train.clip_norm=0"))
    line = refused(capsys, start(config, workdir, "--set", 'data.classes=["run", "jump"]'))
    assert "jump, run" in line and "run, jump" in line
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("options, words", [
    (["model.num_stage=3"], ["--set", "model.num_stage", "'model.num_stages'"]),
    (["model.num_stages=many"], ["model.num_stages", "int"]),
    (["model.num_proposals=3"], ["model.num_proposals (3)", "data.max_targets (4)"]),
    (["data.dataset_dir="], ["data.dataset_dir"]),
    (["data.dataset_dir=nowhere"], ["data.dataset_dir", "nowhere"]),
    (["data.train_subset=train"], ["train", "training", "testing"]),
    (["data.test_subset=val"], ["'val'", "training", "testing"]),  # else told after the last step
    (["inference.external_scores=absent.json"], ["absent.json"]),
    (['data.classes=["run"]'], ["'jump'", "data.classes"]),
    (['data.classes=["run", "jump", "sit"]'], ["'sit'", "data.classes"]),
    (["data.max_targets=1"], ["middle", "data.max_targets (1)", "2"]),
    (["data.crop_size=64"], ["data.crop_size (64)", "36"]),
], ids=lambda value: value[0] if "=" in value[0] else "")  # fmt: skip
def test_refused_options(config, tmp_path, capsys, options, words):
    """A traceback, minutes of work before the refusal, or a sentence that does not name field and remedy."""
    arguments = [part for option in options for part in ("--set", option)]
    line = refused(capsys, start(config, tmp_path / "run", *arguments))
    assert all(word in line for word in words), line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_refused_paths(config, tmp_path, capsys):
    """A missing or empty config file, a work folder that is a file: the file is named."""
    assert "absent.py" in refused(capsys, start(tmp_path / "absent.py", tmp_path / "run"))
    (tmp_path / "empty.py").write_text("")
    line = refused(capsys, start(tmp_path / "empty.py", tmp_path / "run"))
    assert "empty.py" in line and "get_config" in line
    (tmp_path / "file").write_text("mine")
    assert "--workdir" in refused(capsys, start(config, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_options_of_multihost(config, tmp_path, capsys, monkeypatch):
    """Options that are read by nobody without --multihost; a job that waits for ever for processes that nobody named,
    or a traceback from inside JAX."""
    assert "belong to --multihost" in refused(capsys, start(config, tmp_path, "--process-id", "0"))
    asked = []

    def initialize(*arguments, **options):
        asked.append((arguments, options))
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    line = refused(capsys, start(config, tmp_path, "--multihost"))
    assert "coordinator_address should be defined" in line and "--coordinator HOST:PORT" in line
    refused(capsys, start(config, tmp_path, "--multihost", "--coordinator", "a:1", "--num-processes", "3",
                          "--process-id", "2"))
    assert [arguments for arguments, _ in asked] == [(None, None, None), ("a:1", 3, 2)]
    assert all(options["heartbeat_timeout_seconds"] <= 40 for _, options in asked)


def test_nothing_to_evaluate(config, tmp_path, capsys):
    """Random weights evaluated as if they were trained."""
    line = refused(capsys, start(config, tmp_path, "--evaluate-only"))
    assert "no checkpoint" in line and not (tmp_path / "results.json").exists()


def test_batch_must_split_over_devices(config, tmp_path, capsys, monkeypatch):
    """A shape error from deep inside JAX."""
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert "train.batch_size (4)" in refused(capsys, start(config, tmp_path))


def test_debug_shows_the_traceback(tmp_path):
    """A switch that the command takes but ignores."""
    with pytest.raises(Exception, match="no such file"):
        start(tmp_path / "absent.py", tmp_path, "--debug")
