"""One optimisation step: what it changes, what it must leave alone, and options that must not change the result."""

import itertools

import jax
import numpy as np
import pytest

from sptad_jax.training.step import create_state, init_variables, random_key
from tests.reference.tiny_training import CONFIG, NUM_CLASSES, change, make_batch, new_state, quick_compilation, step

# Everything in the backbone frozen, statistics not; dropout makes the step random; weight decay would move parameters.
FROZEN = change(CONFIG, train={"backbone_lr_multiplier": 0.0, "weight_decay": 0.1, "ema_decay": 0.0},
                model={"bn_mode": "train", "bn_momentum": 0.5, "dropout": 0.5})  # fmt: skip
ACCUMULATED = change(CONFIG, train={"accumulate": 2}, model={"remat": True})
LOW_PRECISION = change(CONFIG, model={"compute_dtype": "bfloat16"})


def flatten(tree):
    """path -> NumPy copy."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def repeated():
    """Twelve steps on one batch: the state before each and after the last, and the metrics."""
    state, states, metrics = new_state(CONFIG), [], []
    for _ in range(12):
        states.append((flatten(state.params), flatten(state.batch_stats), flatten(state.ema_params)))
        state, values = step(CONFIG, state, make_batch(0))
        metrics.append(values)
    states.append((flatten(state.params), flatten(state.batch_stats), flatten(state.ema_params)))
    assert int(state.step) == 12
    return states, metrics


def test_repeated_batch_is_learnt(repeated):
    """A gradient of the wrong sign, a state that is not handed on, or a loss that is not what is minimised."""
    losses = [values["loss"] for values in repeated[1]]
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


def test_metrics_add_up(repeated):
    """A part that is logged without its weight, or missing."""
    for values in repeated[1]:
        parts = [values[name] for name in ("loss_class", "loss_l1", "loss_giou", "loss_action")]
        assert values["loss"] == pytest.approx(sum(parts), rel=1e-5) and min(parts) > 0
        assert values["loss"] == pytest.approx(values["loss_stage_0"] + values["loss_action"], rel=1e-5)
        assert values["grad_norm"] > 0


def test_frozen_batch_norm_stays(repeated):
    """Weight decay or statistics that move Kinetics' batch norm; kernels that do not learn."""
    (before, stats_before, _), *_, (after, stats_after, _) = repeated[0]
    assert stats_before and all(np.array_equal(stats_before[path], stats_after[path]) for path in stats_before)
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still == {path for path in before if path.startswith("backbone_rgb/") and "/batch_norm/" in path} != set()


def test_average_of_parameters(repeated):
    """An average of the old parameters, with decay and share swapped, or one that is never updated."""
    states = repeated[0]
    for number, ((_, _, old), (params, _, average)) in enumerate(itertools.pairwise(states)):
        assert average.keys() == params.keys()
        for path in params:
            decay = min(0.75, (1 + number) / (10 + number))
            expected = decay * old[path].astype(np.float64) + (1 - decay) * params[path].astype(np.float64)
            np.testing.assert_allclose(average[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)
    assert all(np.array_equal(states[0][0][path], states[0][2][path]) for path in states[0][0])


def test_accumulation_and_remat_change_nothing(repeated):
    """Micro-batches normalised by their own targets, gradients summed instead of averaged, rows lost or doubled,
    or a recomputed backbone that differs. The rows hold different numbers of targets."""
    batch = make_batch(0)
    assert len(set(batch["valid"].reshape(2, 2, 2).sum((0, 2)).tolist())) == 2
    state, values = step(ACCUMULATED, new_state(ACCUMULATED), batch)
    for name, value in repeated[1][0].items():
        assert values[name] == pytest.approx(value, rel=1e-4), name
    # Adam's first moment is a tenth of the clipped gradient: compared where params would hide small gradients.
    once, _ = step(CONFIG, new_state(CONFIG), batch)
    for part in ("opt_state", "params"):
        expected, found = flatten(getattr(once, part)), flatten(getattr(state, part))
        assert expected.keys() == found.keys()
        for path in expected:
            if part == "params":  # Adam divides by the gradient's size, so that noise near 0 decides a sign
                assert np.abs(found[path] - expected[path]).max() < 2.1 * 0.01, path
            else:
                np.testing.assert_allclose(found[path], expected[path], rtol=1e-3, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def frozen():
    """Before and after one step with a frozen backbone; and the losses of the same state at steps 0, 0 and 1."""
    before = new_state(FROZEN)
    first = flatten(before.params), flatten(before.batch_stats)
    after, zero = step(FROZEN, before, make_batch(0))
    _, again = step(FROZEN, new_state(FROZEN), make_batch(0))
    moved = new_state(FROZEN)
    _, one = step(FROZEN, moved.replace(step=moved.step + 1), make_batch(0))
    return first, (flatten(after.params), flatten(after.batch_stats)), [zero["loss"], again["loss"], one["loss"]]


def test_frozen_backbone_is_bit_equal(frozen):
    """Weight decay, momentum or a small learning rate that moves a backbone which is said to be frozen."""
    (before, _), (after, _), _ = frozen
    for path in before:
        assert np.array_equal(before[path], after[path]) == path.startswith("backbone_rgb/"), path


def test_statistics_of_a_frozen_backbone_stay(frozen):
    """bn_mode=train that makes a backbone of rate 0 another one from step to step, where Table 4 extracts offline."""
    (_, before), (_, after), _ = frozen
    assert before and before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(before[path], after[path], path)


def test_statistics_follow_in_train_mode():
    """Statistics that are computed but not handed on: all of them must move, towards finite values."""
    config = change(FROZEN, train={"backbone_lr_multiplier": 1.0}, model={"dropout": 0.0})
    state = new_state(config)
    before = flatten(state.batch_stats)
    after = flatten(step(config, state, make_batch(0))[0].batch_stats)
    assert before and before.keys() == after.keys()
    for path in before:
        assert np.isfinite(after[path]).all() and not np.array_equal(before[path], after[path]), path


def test_step_is_random_by_its_number_alone(frozen):
    """Dropout that is the same in every step, or another one when the same step is repeated (exact resume)."""
    zero, again, one = frozen[2]
    assert zero == again != one


def test_bfloat16_keeps_float32_parameters(repeated):
    """Parameters, averages or moments that silently become bfloat16; a loss far from that of float32."""
    state, values = step(LOW_PRECISION, new_state(LOW_PRECISION), make_batch(0))
    assert all(np.isfinite(value) for value in values.values())
    assert values["loss"] == pytest.approx(repeated[1][0]["loss"], rel=0.05)
    floats = [x for x in jax.tree.leaves((state.params, state.ema_params, state.opt_state)) if x.dtype.kind == "f"]
    assert floats and {x.dtype for x in floats} == {np.dtype("float32")}


def test_random_key():
    """A key that does not depend on one of seed, name and step, or that differs when traced."""
    def data(*arguments):
        return tuple(jax.random.key_data(random_key(*arguments)).tolist())

    keys = [data(seed, name, number) for seed in (0, 1) for name in ("augment", "dropout") for number in (0, 1, 500)]
    assert len(set(keys)) == 12
    assert data(1, "dropout", 500) == keys[-1]
    traced = jax.jit(lambda number: jax.random.key_data(random_key(1, "dropout", number)))(np.int32(500))
    assert tuple(traced.tolist()) == keys[-1]


def test_initial_state():
    """Random initial values: shaped like the drawn ones, fixed by the seed, finite; the published initial biases."""
    with quick_compilation():
        first, other = (init_variables(change(CONFIG, train={"seed": seed}), NUM_CLASSES) for seed in (0, 1))
    drawn = new_state(CONFIG)
    shapes = [{path: x.shape for path, x in flatten(tree).items()} for tree in (first["params"], drawn.params)]
    assert shapes[0] == shapes[1]
    assert flatten(first["batch_stats"]).keys() == flatten(drawn.batch_stats).keys()
    one, two = flatten(first["params"]), flatten(other["params"])
    assert all(np.isfinite(x).all() for x in one.values())
    # kernels of a refinement branch may begin at 0
    random = [path for path in one if path.endswith("kernel") and one[path].any()]
    assert len(random) > 5 and not any(np.array_equal(one[path], two[path]) for path in random)


def test_no_average_without_decay():
    """A second copy of all parameters in memory and checkpoints that nobody asked for."""
    class Nothing:
        init = staticmethod(lambda params: {})

    variables = {"params": {"kernel": np.ones(3)}, "batch_stats": {}}
    assert create_state(variables, Nothing(), change(CONFIG, train={"ema_decay": 0.0})).ema_params == {}
    state = create_state(variables, Nothing(), CONFIG)
    assert state.ema_params["kernel"] is not state.params["kernel"]
    np.testing.assert_array_equal(state.ema_params["kernel"], np.ones(3))
