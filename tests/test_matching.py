"""Matching against a search over all assignments, in one process and over four simulated devices."""

import itertools
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.config import LossConfig
from sptad_jax.errors import UserError
from sptad_jax.training import matching
from tests.reference import matching as reference

BACKENDS = ["scipy", "optax"]
ASSIGN = {backend: jax.jit(lambda cost, b=backend: matching.assign(cost, b)) for backend in BACKENDS}
MATCH = {backend: jax.jit(lambda *args, b=backend: matching.match(*args, LossConfig(), b)) for backend in BACKENDS}
S, B, N, M, A = 2, 3, 6, 4, 5


def problem(seed=0):
    """Random predictions and targets; windows hold 4, 1 and 0 real targets."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.random((S, B, N, 2)), axis=-1)
    targets = np.sort(rng.random((B, M, 2)), axis=-1)
    valid = np.arange(M) < np.array([[4], [1], [0]])
    labels = rng.integers(0, A, (B, M))
    logits = rng.normal(0, 2, (S, B, N, A))
    return (logits.astype(np.float32), segments.astype(np.float32), targets.astype(np.float32), labels, valid)


def check_one_to_one(matches, num_proposals):
    assert matches.dtype == np.int32
    assert matches.min() >= 0 and matches.max() < num_proposals
    for row in np.asarray(matches).reshape(-1, matches.shape[-1]):
        assert len(set(row.tolist())) == len(row)


@pytest.mark.parametrize("config", [
    LossConfig(),
    LossConfig(class_cost=6.0, l1_cost=1.0, giou_cost=0.5, class_weight=9.0, l1_weight=9.0, giou_weight=9.0),
    LossConfig(focal_alpha=0.6, focal_gamma=1.5),
    LossConfig(l1_coordinates="centre_width", iou="tiou"),
], ids=["defaults", "weights", "focal", "coordinates"])
def test_cost_equals_scalars(config):
    """A wrong term, sign or weight (a loss weight in the place of a cost weight), or mixed-up axes."""
    logits, segments, targets, labels, valid = problem()
    cost = matching.matching_cost(logits, segments, targets, labels, valid, config)
    assert cost.shape == (S, B, N, M) and cost.dtype == jnp.float32
    for s, b in itertools.product(range(S), range(B)):
        expected = reference.cost_matrix(logits[s, b].astype(float), segments[s, b].tolist(), targets[b].tolist(),
                                         labels[b], config) * valid[b]
        np.testing.assert_allclose(cost[s, b], expected, rtol=1e-4, atol=1e-5)


def test_cost_is_float32_for_bfloat16_logits():
    """Costs rounded to 8 bits would make ties of different proposals."""
    logits, *rest = problem()
    low = jnp.asarray(logits, jnp.bfloat16)
    cost = matching.matching_cost(low, *rest, LossConfig())
    assert cost.dtype == jnp.float32
    np.testing.assert_array_equal(cost, matching.matching_cost(low.astype(jnp.float32), *rest, LossConfig()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["plain", "ties", "equal", "big", "negative"]))
@settings(deadline=None, max_examples=30)
def test_assignment_is_the_cheapest(backend, seed, kind):
    """A greedy or otherwise suboptimal assignment, rows and columns swapped, an order that is lost in the scatter."""
    rng = np.random.default_rng(seed)
    cost = {"plain": rng.random((S, B, N, M)), "ties": rng.integers(0, 3, (S, B, N, M)), "equal": np.ones((S, B, N, M)),
            "big": np.where(rng.random((S, B, N, M)) < 0.3, matching.MAX_COST, rng.random((S, B, N, M))),
            "negative": -5 * rng.random((S, B, N, M))}[kind].astype(np.float32)
    matches = np.asarray(ASSIGN[backend](cost))
    check_one_to_one(matches, N)
    for s, b in itertools.product(range(S), range(B)):
        total = cost[s, b, matches[s, b], np.arange(M)].astype(float).sum()
        np.testing.assert_allclose(total, reference.cheapest(cost[s, b].astype(float))[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_match_with_padding_is_the_cheapest_for_real_targets(backend, seed):
    """Padding that takes a proposal from a real target, or whose contents (labels out of range) matter."""
    logits, segments, targets, labels, valid = problem(seed)
    matches = np.asarray(MATCH[backend](logits, segments, targets, labels, valid))
    assert matches.shape == (S, B, M)
    check_one_to_one(matches, N)
    for s, b in itertools.product(range(S), range(B)):
        real = np.flatnonzero(valid[b])
        cost = reference.cost_matrix(logits[s, b].astype(float), segments[s, b].tolist(), targets[b, real].tolist(),
                                     labels[b, real], LossConfig())
        total = sum(cost[matches[s, b, m], i] for i, m in enumerate(real))
        np.testing.assert_allclose(total, reference.cheapest(cost)[0] if len(real) else 0.0, rtol=1e-4, atol=1e-5)
    garbage = np.where(valid[..., None], targets, np.nan), np.where(valid, labels, -7), valid
    again = np.asarray(MATCH[backend](logits, segments, *garbage))
    np.testing.assert_array_equal(np.where(valid, again, 0), np.where(valid, matches, 0))


def test_stages_are_matched_one_by_one():
    """One stage's assignment used for all: equation 2 is applied to every stage on its own."""
    problems = problem(3)
    together = MATCH["scipy"](*problems)
    for s in range(S):
        alone = MATCH["scipy"](problems[0][s:s + 1], problems[1][s:s + 1], *problems[2:])
        np.testing.assert_array_equal(together[s], alone[0])


@pytest.mark.parametrize("num_proposals", [4, 30])
def test_backends_reach_the_same_cost_as_scipy(num_proposals):
    """Two backends with two meanings; the square problem (N = M) and a long one."""
    cost = np.random.default_rng(1).normal(size=(2, 2, num_proposals, 4)).astype(np.float32)
    for backend in BACKENDS:
        matches = np.asarray(ASSIGN[backend](cost))
        for s, b in itertools.product(range(2), range(2)):
            rows, columns = scipy.optimize.linear_sum_assignment(cost[s, b])
            np.testing.assert_allclose(cost[s, b, matches[s, b], np.arange(4)].sum(), cost[s, b, rows, columns].sum(),
                                       rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_diverged_predictions_are_matched_last(backend):
    """A non-finite prediction that hangs or breaks the assignment, or that is taken for a good one."""
    logits, segments, targets, labels, valid = problem()
    logits[:, :, 0], segments[:, :, 1], segments[:, :, 2] = np.nan, np.inf, (-np.inf, np.inf)
    segments[:, :, 3] = (0.9, 0.1)  # an end before its start
    matches = np.asarray(MATCH[backend](logits, segments, targets, labels, valid))
    check_one_to_one(matches, N)
    assert np.all(matches[:, 1, 0] >= 3)  # one target, and three sound proposals
    assert all({3, 4, 5} <= set(row.tolist()) for row in matches[:, 0])  # four targets take all sound ones


def test_no_gradient_flows():
    """A gradient through the cost, or through the callback, which has none."""
    logits, segments, targets, labels, valid = problem()

    def total(logits, segments):
        matches = matching.match(logits, segments, targets, labels, valid, LossConfig(), "scipy")
        cost = matching.matching_cost(logits, segments, targets, labels, valid, LossConfig())
        return jnp.take_along_axis(cost, matches[:, :, None, :], axis=2).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.asarray(logits), jnp.asarray(segments)):
        assert not np.any(gradient)


def test_backend_comes_from_the_config(monkeypatch):
    """An option that nothing reads: "scipy" must call back to the host, "optax" must not."""
    calls, on_host = [], matching._assign_on_host
    monkeypatch.setattr(matching, "_assign_on_host", lambda cost: calls.append(cost.shape) or on_host(cost))
    for matcher, expected in (("scipy", 1), ("optax", 0)):
        calls.clear()
        jax.block_until_ready(matching.match(*problem(), LossConfig(matcher=matcher)))
        assert len(calls) == expected, matcher
        assert not calls or calls[0] == (S * B, N, M)  # all stages in one call


def test_errors_name_the_fields():
    """Targets that are dropped silently when there are more of them than proposals; an unknown backend."""
    logits, segments, *targets = problem()
    with pytest.raises(UserError, match=r"model\.num_proposals \(3\).*data\.max_targets \(4\)"):
        jax.eval_shape(lambda x, y: matching.match(x, y, *targets, LossConfig()), logits[:, :, :3], segments[:, :, :3])
    with pytest.raises(UserError, match=r"loss\.matcher"):
        matching.match(logits, segments, *targets, LossConfig(), "greedy")


def test_no_targets_at_all():
    """A dataset padded to M = 0."""
    logits, segments, *targets = problem()
    matches = matching.match(logits, segments, *[x[:, :0] for x in targets], LossConfig())
    assert matches.shape == (S, B, 0)


SHARDED = """
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from sptad_jax.config import LossConfig
    from sptad_jax.errors import UserError
    from sptad_jax.training import losses, matching
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    predictions = {"class_logits": rng.normal(size=(2, 8, 6, 5)), "segments_se": np.sort(rng.random((2, 8, 6, 2)), -1),
                   "clip_logits": rng.normal(size=(8, 5))}
    batch = {"segments_norm": np.sort(rng.random((8, 4, 2)), -1), "labels": rng.integers(0, 5, (8, 4)),
             "valid": rng.random((8, 4)) < 0.6, "clip_labels": (rng.random((8, 5)) < 0.3) * 1.0}
    single = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, (predictions, batch))
    def put(x, stages):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "data") if stages else PartitionSpec("data")))
    sharded = ({k: put(v, v.ndim == 4) for k, v in single[0].items()}, {k: put(v, False) for k, v in single[1].items()})
    calls, on_host = [], matching._assign_on_host
    matching._assign_on_host = lambda cost: calls.append(cost.shape) or on_host(cost)
    names = ("class_logits", "segments_se"), ("segments_norm", "labels", "valid")
    def run(data, config, mesh):
        def loss(predictions, batch):
            arguments = [predictions[name] for name in names[0]] + [batch[name] for name in names[1]]
            matches = matching.match(*arguments, config, mesh=mesh)
            return losses.compute_losses(predictions, batch, config, matches)[0], matches
        (total, matches), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*data)
        return jax.block_until_ready((matches, (total, gradient)))
    for matcher in ("scipy", "optax"):
        config = LossConfig(matcher=matcher)
        expected = run(single, config, None)
        calls.clear()
        found = run(sharded, config, mesh)
        np.testing.assert_array_equal(found[0], expected[0])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found[1], expected[1])
        assert not found[0].is_fully_replicated, found[0].sharding
        assert calls == ([(4, 6, 4)] * 4 if matcher == "scipy" else []), calls
    try:
        matching.assign(np.zeros((1, 6, 3, 2), np.float32), "scipy", mesh)
        raise AssertionError("six windows on four devices were accepted")
    except UserError as error:
        assert "train.batch_size" in str(error)
    print("sharded as expected")
"""


def test_each_device_matches_its_own_windows():
    """Four devices that gather all windows to one (a callback in a global program sees the whole batch), a different
    answer or loss than on one device, and a normaliser that is counted per device."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SHARDED)], env=environment, capture_output=True,
                          text=True, timeout=240, cwd=pathlib.Path(__file__).resolve().parents[1])
    assert done.returncode == 0 and "sharded as expected" in done.stdout, done.stdout + done.stderr
