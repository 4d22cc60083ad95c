"""Checkpoints: what is saved comes back bit for bit in a new process, what does not fit is refused in a sentence."""

import itertools
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sptad_jax.errors import UserError
from sptad_jax.training import sharding
from sptad_jax.training.checkpoints import Checkpoints, load_for_inference
from sptad_jax.training.step import TrainState

META = {"config": {"model": {"num_stages": 4, "eta": 5.0}}, "classes": ["run", "jump"], "source": {"flow": None}}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_state(step=0, seed=0, kernel=(3, 2), head="head", ema=True, tx=TX):
    """A small state with awkward numbers: subnormal, huge, negative zero."""
    rng = np.random.default_rng([seed, step])
    special = np.array([1e-42, 1e38, -0.0], np.float32)

    def draw():
        kernel_values = rng.normal(size=kernel).astype(np.float32)
        return {"backbone_rgb": {"conv": {"kernel": kernel_values}}, head: {"bias": special * (1 + seed)}}

    params = jax.tree.map(jnp.asarray, draw())
    state = TrainState(
        step=jnp.asarray(step, jnp.int32), params=params, opt_state=tx.init(params),
        batch_stats={"backbone_rgb": {"conv": {"mean": jnp.asarray(rng.normal(size=2), jnp.float32)}}},
        ema_params=jax.tree.map(jnp.asarray, draw()) if ema else {})  # fmt: skip
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(3 + step + seed, x.dtype), state.opt_state)
    return sharding.replicate(state.replace(opt_state=opt_state), sharding.make_mesh(1))


def save(folder, *states, keep=2, maps=()):
    """As a process that trains: saves in the background, then closes."""
    with Checkpoints(folder / "checkpoints", keep) as checkpoints:
        for state, average_map in itertools.zip_longest(states, maps):
            checkpoints.save(state, {"step": 10 * int(state.step)}, META, average_map)


def restore(folder, state, keep=2):
    """As the next process."""
    with Checkpoints(folder / "checkpoints", keep) as checkpoints:
        return checkpoints.restore(state)


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def assert_equal(expected, found):
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 3, 5 and 8 in a folder that keeps two; with averaged parameters."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, *[make_state(step) for step in (3, 5, 8)])
    return folder


def test_newest_comes_back_bit_for_bit(saved):
    """A leaf that is rounded, left out or swapped (params with the average); an older step; lost sharding or meta."""
    target = make_state(seed=1)
    state, data_state, meta = restore(saved, target)
    assert_equal(make_state(8), state)
    assert data_state == {"step": 80} and meta == META
    assert {x.sharding for x in jax.tree.leaves(state)} == {target.step.sharding}


def test_keeps_the_newest(saved):
    """A disk that fills up, or the newest one deleted instead of the oldest."""
    assert steps_in(saved) == [5, 8]


def test_keeps_the_best(tmp_path):
    """The best state deleted because it is old, the worst kept for the best, or the newest deleted because others are
    better, without which no run could go on."""
    states = [make_state(step) for step in (1, 2, 3, 4, 5)]
    save(tmp_path, *states, keep=1, maps=(0.1, 0.5, 0.0, 0.3, None))
    assert steps_in(tmp_path) == [2, 5]
    assert_equal(states[4], restore(tmp_path, make_state(), keep=1)[0])
    variables, meta = load_for_inference(tmp_path / "checkpoints" / "2")
    assert meta["step"] == 2
    assert_equal(states[1].ema_params, variables["params"])


def test_same_step_is_not_written_twice(tmp_path):
    """A finished run that is started again stops with 'step already exists', or overwrites a good checkpoint."""
    save(tmp_path, make_state(4))
    save(tmp_path, make_state(4, seed=1))
    assert_equal(make_state(4), restore(tmp_path, make_state())[0])


def test_no_checkpoint_yet(tmp_path, capsys):
    """A fresh folder taken for a run to resume; half-written checkpoints of a killed process taken for whole ones, or
    dropped without a word."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest_step() is None
    assert "the checkpoint of step 7 was not written to its end" in capsys.readouterr().out


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "array cut": lambda step: cut(largest_file(step / "model")),
    "array changed": lambda step: largest_file(step / "optimizer").write_bytes(b"?" * 4000),
    "description gone": lambda step: (step / "model" / "_METADATA").unlink(),
    "item gone": lambda step: shutil.rmtree(step / "optimizer"),
    "position cut": lambda step: cut(step / "data" / "metadata"),
    "nothing left": lambda step: [shutil.rmtree(path) for path in step.iterdir() if path.is_dir()],
}


@pytest.mark.usefixtures("orbax_leftovers")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, capsys, damage):
    """A run that never starts again for one bad file, or that goes on from elsewhere without a word; a damaged step
    that blocks the saving of the good one, or the next start when that is damaged too, or is tried at each start."""
    save(tmp_path, make_state(5), make_state(8))
    damage(tmp_path / "checkpoints" / "8")
    state, data_state, meta = restore(tmp_path, make_state())
    assert_equal(make_state(5), state)
    assert data_state == {"step": 50} and meta == META
    assert "step 8 is damaged, it is now 8.damaged; going on from step 5" in capsys.readouterr().out
    assert steps_in(tmp_path) == [5] and (tmp_path / "checkpoints" / "8.damaged").is_dir()
    save(tmp_path, make_state(8))
    assert_equal(make_state(8), restore(tmp_path, make_state())[0])
    assert capsys.readouterr().out == ""
    damage(tmp_path / "checkpoints" / "8")  # once more, beside what was set aside before
    assert_equal(make_state(5), restore(tmp_path, make_state())[0])
    assert "it is now 8.damaged1; going on from step 5" in capsys.readouterr().out


@pytest.mark.usefixtures("orbax_leftovers")
def test_all_damaged_is_one_sentence(tmp_path):
    """A traceback, a fresh start over the remains of a run, or folders renamed for nothing."""
    save(tmp_path, make_state(5), make_state(8))
    for step in ("5", "8"):
        cut(tmp_path / "checkpoints" / step / "meta" / "metadata")
    with pytest.raises(UserError, match=r"step 8 .* is damaged"):
        restore(tmp_path, make_state())
    assert steps_in(tmp_path) == [5, 8]


def test_unwritable_folder_is_one_sentence(tmp_path):
    """A traceback of Orbax where the folder cannot be made."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file/checkpoints: the folder cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints", 2)


@pytest.mark.usefixtures("orbax_leftovers")
def test_full_disk_is_one_sentence(tmp_path):
    """A disk that fills up while a checkpoint is written in the background: a traceback, or a training that goes on
    without any; the checkpoint before must stay. (Files are limited to 100 kB, where a full disk would stop them.)"""
    big = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
    save(tmp_path, make_state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"checkpoints: the .*checkpoint.* cannot be written \(.*; make room"):
            checkpoints.save(make_state(2).replace(batch_stats={"x": jnp.asarray(big)}), {"step": 20}, META)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps_in(tmp_path) == [1]
    assert_equal(make_state(1), restore(tmp_path, make_state())[0])


@pytest.mark.parametrize("changes, lines", [
    ({"kernel": (3, 4)}, [r"params/backbone_rgb/conv/kernel: \(3, 2\) in the checkpoint, \(3, 4\) in the config"]),
    ({"head": "tail"}, ["params/head/bias: only in the checkpoint", "params/tail/bias: not in the checkpoint"]),
    ({"ema": False}, ["ema_params/head/bias: only in the checkpoint"]),
])  # fmt: skip
def test_other_architecture_is_refused_with_paths(saved, changes, lines):
    """A traceback of Orbax, or worse, parameters cut to fit; each path is listed, and the file and remedy named."""
    for line in lines:
        with pytest.raises(UserError, match=line) as raised:
            restore(saved, make_state(**changes))
    assert str(saved / "checkpoints") in str(raised.value) and "--workdir" in str(raised.value)


def test_long_lists_are_cut(saved):
    """A screen of two thousand paths."""
    state = make_state(head="tail")
    state = state.replace(params={f"layer_{i:02}": state.params for i in range(15)})
    with pytest.raises(UserError) as raised:
        restore(saved, state)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22 and lines[-1] == "  ... and 14 more"  # 30 + 2 of params, 2 of averages


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))],
                         ids=["without clipping", "without moments"])
def test_other_optimizer_is_refused(saved, tx):
    """Same parameters, other optimiser options (train.clip_norm, train.decay_mask): a traceback of Orbax."""
    with pytest.raises(UserError, match="checkpoint"):
        restore(saved, make_state(tx=tx))


def test_inference_takes_the_average(saved, caplog):
    """Detection with the raw parameters of a run that kept averaged ones; read-only use that touches the folder, or
    that fills the terminal with Orbax's remarks on what is not read."""
    before = sorted(path.name for path in saved.rglob("*"))
    for folder in (saved, saved / "checkpoints"):
        variables, meta = load_for_inference(folder)
        expected = make_state(8)
        assert_equal({"params": expected.ema_params, "batch_stats": expected.batch_stats}, variables)
        assert meta == META | {"step": 8}
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    assert sorted(path.name for path in saved.rglob("*")) == before


def test_inference_without_average(tmp_path):
    """A run without averages, or a model without batch norm, that cannot be read."""
    state = make_state(2, ema=False).replace(batch_stats={})
    save(tmp_path, state)
    assert_equal({"params": state.params, "batch_stats": {}}, load_for_inference(tmp_path)[0])
    restored, _, _ = restore(tmp_path, make_state(ema=False).replace(batch_stats={}))
    assert_equal(state, restored)


def test_missing_checkpoint_is_one_sentence(tmp_path):
    """A traceback for a misspelt folder, or a folder of checkpoints made where there was none."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("train")
    for folder in ("absent", "empty", "notes"):
        with pytest.raises(UserError, match=f"--checkpoint .*{folder}: no checkpoint there"):
            load_for_inference(tmp_path / folder)
    assert not (tmp_path / "absent").exists() and list((tmp_path / "empty").iterdir()) == []


@pytest.mark.usefixtures("orbax_leftovers")
def test_damaged_checkpoint_is_one_sentence(tmp_path):
    """A checkpoint that lost a part in copying: a traceback of Orbax."""
    save(tmp_path, make_state(1))
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").write_text('{"config": ')
    with pytest.raises(UserError, match="damaged"):
        load_for_inference(tmp_path)
