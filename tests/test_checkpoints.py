"""Checkpoints: what is saved comes back bit for bit in a new process, what does not fit is refused in a sentence."""

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


def save(folder, *states, keep=2):
    """As a process that trains: saves in the background, then closes."""
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    for state in states:
        checkpoints.save(state, {"step": 10 * int(state.step)}, META)
    checkpoints.close()


def restore(folder, state, keep=2):
    """As the next process."""
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    try:
        return checkpoints.restore(state)
    finally:
        checkpoints.close()


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
    assert sorted(path.name for path in (saved / "checkpoints").iterdir() if path.name.isdigit()) == ["5", "8"]


def test_same_step_is_not_written_twice(tmp_path):
    """A finished run that is started again stops with 'step already exists', or overwrites a good checkpoint."""
    save(tmp_path, make_state(4))
    save(tmp_path, make_state(4, seed=1))
    assert_equal(make_state(4), restore(tmp_path, make_state())[0])


def test_no_checkpoint_yet(tmp_path):
    """A fresh folder taken for a run to resume; half-written checkpoints of a killed process taken for whole ones."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    assert checkpoints.latest_step() is None
    checkpoints.close()


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


def test_damaged_checkpoint_is_one_sentence(tmp_path):
    """A checkpoint that lost a part in copying: a traceback of Orbax."""
    save(tmp_path, make_state(1))
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").write_text('{"config": ')
    with pytest.raises(UserError, match="damaged"):
        load_for_inference(tmp_path)
