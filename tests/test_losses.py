"""Losses against slow loops, PyTorch, and the identities that the docstring promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import LossConfig
from sptad_jax.errors import UserError
from sptad_jax.training import losses, matching
from tests.reference import losses as reference
from tests.reference.matching import cheapest, cost_matrix
from tests.reference.parameters import UNOPTIMISED, run_once

S, B, N, M, A = 2, 3, 6, 4, 5
CONFIGS = [
    LossConfig(),
    LossConfig(class_weight=1.0, l1_weight=3.0, giou_weight=0.5, action_weight=2.0, class_cost=7.0, l1_cost=0.1),
    LossConfig(focal_alpha=0.7, focal_gamma=0.5),
    LossConfig(focal_gamma=0.0),
    LossConfig(l1_coordinates="centre_width"),
    LossConfig(iou="tiou"),
    LossConfig(action_reduction="sum"),
    LossConfig(stage_weights=(0.25, 2.0)),
    LossConfig(matcher="optax"),
]
CONFIG_NAMES = ["defaults", "weights", "focal", "gamma0", "centre_width", "tiou", "sum", "stages", "optax"]


def problem(seed=0, leading=S):
    """Random predictions and targets; windows hold 3, 1 and 0 real targets."""
    rng = np.random.default_rng(seed)
    predictions = {"class_logits": rng.normal(0, 2, (leading, B, N, A)),
                   "segments_se": np.sort(rng.normal(0.5, 0.4, (leading, B, N, 2)), -1),
                   "clip_logits": rng.normal(0, 2, (B, A))}
    batch = {"segments_norm": np.sort(rng.random((B, M, 2)), -1), "labels": rng.integers(0, A, (B, M)),
             "valid": np.arange(M) < np.array([[3], [1], [0]]), "clip_labels": (rng.random((B, A)) < 0.4) * 1.0}
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, (predictions, batch))


compiled = functools.partial(jax.jit, static_argnames=("config", "num_groups"), compiler_options=UNOPTIMISED)


@compiled
def compute(predictions, batch, config=LossConfig(), num_groups=1, num_positives=None):  # noqa: B008 (frozen)
    return losses.compute_losses(predictions, batch, config, num_groups=num_groups, num_positives=num_positives)


with_gradient = compiled(jax.value_and_grad(compute.__wrapped__, has_aux=True))


def matches_of(predictions, batch, config):
    """int [leading, B, M], by a search over all assignments; padding, which comes last, has proposals that are left."""
    logits, segments = predictions["class_logits"], predictions["segments_se"]
    matches = np.empty((len(logits), B, M), np.int32)
    for k, b in np.ndindex(len(logits), B):
        targets, labels = (batch[name][b][batch["valid"][b]] for name in ("segments_norm", "labels"))
        rows = cheapest(cost_matrix(logits[k, b], segments[k, b], targets, labels, config))[1]
        matches[k, b] = [*rows, *(n for n in range(N) if n not in rows)][:M]
    return matches


def close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("config", "clip_head"), [
    (LossConfig(), False),
    *[(config, True) for config in CONFIGS],
], ids=["no_clip_head", *CONFIG_NAMES])
def test_losses_equal_slow_loops(config, clip_head):
    """A wrong term, weight, normaliser or reduction, an option that nothing reads, the action loss per stage."""
    predictions, batch = problem()
    if not clip_head:
        del predictions["clip_logits"]
    total, metrics = compute(predictions, batch, config)
    close(metrics, reference.losses(predictions, batch, matches_of(predictions, batch, config), config))
    assert total == metrics["loss"]
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())


def test_parts_add_up():
    """Metrics that do not explain the loss."""
    _, metrics = compute(*problem(1), LossConfig(stage_weights=(3.0, 0.5), action_weight=4.0))
    parts = metrics["loss_class"] + metrics["loss_l1"] + metrics["loss_giou"]
    np.testing.assert_allclose(metrics["loss_stage_0"] + metrics["loss_stage_1"], parts, rtol=1e-5)
    np.testing.assert_allclose(parts + metrics["loss_action"], metrics["loss"], rtol=1e-5)


def test_two_detectors_share_the_stage_weights():
    """Late fusion: the leading axis k * G + g read as G-major, or a normaliser that is halved."""
    predictions, batch = problem(2, leading=4)
    config = LossConfig(stage_weights=(0.25, 2.0))
    _, metrics = compute(predictions, batch, config, 2)
    matches = matches_of(predictions, batch, config)
    close(metrics, reference.losses(predictions, batch, matches, config, num_groups=2))


def test_given_matches_are_used():
    """Matching anew in spite of given matches."""
    predictions, batch = problem()
    matches = np.broadcast_to(np.arange(M, dtype=np.int32)[::-1], (S, B, M))
    _, metrics = losses.compute_losses(predictions, batch, LossConfig(), matches=jnp.asarray(matches))
    close(metrics, reference.losses(predictions, batch, matches, LossConfig()))


def test_no_targets_gives_finite_loss_and_gradient():
    """Division by N_pos = 0, and gradients into segments that no target has."""
    predictions, batch = problem()
    batch["valid"] = np.zeros_like(batch["valid"])
    batch["segments_norm"] = np.zeros_like(batch["segments_norm"])
    (total, metrics), gradient = with_gradient(predictions, batch)
    assert np.isfinite(total) and metrics["loss_l1"] == metrics["loss_giou"] == 0 and metrics["loss_class"] > 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert not np.any(gradient["segments_se"])


@pytest.mark.parametrize("filler", [np.nan, np.inf])
def test_padding_changes_nothing(filler):
    """Padded targets that count in N_pos or in a sum, or that make a gradient NaN (0 times infinity)."""
    predictions, batch = problem()
    garbage = dict(batch, segments_norm=np.where(batch["valid"][..., None], batch["segments_norm"], filler),
                   labels=np.where(batch["valid"], batch["labels"], -1))
    expected, found = with_gradient(predictions, batch), with_gradient(predictions, garbage)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_micro_batches_average_to_the_whole_batch():
    """A normaliser per micro-batch, which weighs windows by the company they keep."""
    predictions, batch = problem(4)
    expected = with_gradient(predictions, batch)[1]
    num_positives = losses.count_positives(jnp.asarray(batch["valid"])) / B
    for b in range(B):
        part = {name: value[b:b + 1] if name == "clip_logits" else value[:, b:b + 1]
                for name, value in predictions.items()}
        one = {name: value[b:b + 1] for name, value in batch.items()}
        found = with_gradient(part, one, num_positives=num_positives)[1]
        for name in found:
            whole = expected[name][b:b + 1] if name == "clip_logits" else expected[name][:, b:b + 1]
            np.testing.assert_allclose(found[name] / B, whole, rtol=1e-4, atol=1e-6)


def test_number_of_positives():
    """N_pos counted per window or without its minimum."""
    assert losses.count_positives(jnp.array([[True, True, False], [True, False, False]])) == 3
    assert losses.count_positives(jnp.zeros((2, 3), bool)) == 1


def test_extreme_inputs_stay_finite():
    """Overflow of a logarithm or power (gamma below 1 too), a division by an empty segment, an end before its start."""
    predictions, batch = problem()
    predictions["class_logits"] *= 1e4
    predictions["clip_logits"] *= 1e4
    predictions["segments_se"][:, :, ::3] = 0.5
    predictions["segments_se"][:, :, 1::3] = (0.9, 0.2)
    predictions["segments_se"][:, :, 2::3] *= 1e6
    batch["segments_norm"][0] = 0.5
    for gamma in (0.5, 2.0):
        (total, _), gradient = with_gradient(predictions, batch, config=LossConfig(focal_gamma=gamma))
        assert np.isfinite(total) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_predictions_are_summed_in_float32():
    """Sums of thousands of small terms in 8 bits."""
    predictions, batch = problem()
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), predictions)
    expected = compute(jax.tree.map(lambda x: x.astype(jnp.float32), low), batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), compute(low, batch), expected)


def test_gradient_step_improves_each_part():
    """A sign error: each loss must fall along its own negative gradient, with the matches fixed."""
    predictions, batch = problem()
    matches = matches_of(predictions, batch, LossConfig())
    names = ("loss_class", "loss_l1", "loss_giou", "loss_action")

    def parts(p):
        metrics = losses.compute_losses(p, batch, LossConfig(), matches=matches)[1]
        return jnp.stack([metrics[name] for name in names])

    values, jacobian = jax.jit(lambda p: (parts(p), jax.jacrev(parts)(p)))(predictions)
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g, predictions, jacobian)
    after = jax.jit(jax.vmap(parts))(moved)
    assert np.all(np.diag(after) < values)


def test_stage_weights_of_another_length():
    """Weights that are broadcast or cut silently."""
    with pytest.raises(UserError, match=r"loss\.stage_weights has 3 entries for 2 stages"):
        losses.compute_losses(*problem(), LossConfig(stage_weights=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_focal_loss_equals_torch(alpha, gamma, precision, parity):
    """Value and gradient against torch's cross-entropy with logits and the textbook modulation."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_losses import focal_loss

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (40, A)).astype(precision)
    targets = (rng.random((40, A)) < 0.3).astype(precision)
    x = torch.tensor(logits, requires_grad=True)
    expected = focal_loss(x, torch.tensor(targets), alpha, gamma)
    expected.sum().backward()
    parity("value", losses.sigmoid_focal_loss(jnp.asarray(logits), targets, alpha, gamma), expected)
    gradient = jax.grad(lambda x: losses.sigmoid_focal_loss(x, targets, alpha, gamma).sum())(logits)
    parity("gradient by the logits", gradient, x.grad)


@pytest.mark.parametrize("kind", ["giou", "tiou"])
def test_overlap_and_l1_equal_torch(kind, precision, parity):
    """A wrong sign of the hull's part, a gradient of disjoint or nested segments that is lost, a swapped coordinate."""
    torch = pytest.importorskip("torch")
    from tests.reference import torch_losses

    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.normal(0.5, 0.4, (60, 2)), -1).astype(precision) for _ in range(2))
    inside = np.minimum(a[:, 1], b[:, 1]) > np.maximum(a[:, 0], b[:, 0])
    assert 10 < inside.sum() < 50  # overlapping and disjoint pairs
    xs = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    value = torch_losses.overlap(*xs, kind)
    value.sum().backward()
    found = jax.vjp(lambda a, b: matching.overlap(a, b, kind), a, b)
    parity(f"{kind}, value", found[0], value)
    parity(f"{kind}, gradients by both segments", found[1](jnp.ones_like(found[0])), tuple(x.grad for x in xs))
    for coordinates in ("start_end", "centre_width"):
        x, y = torch.tensor(a, requires_grad=True), torch.tensor(b)
        value = torch.nn.functional.l1_loss(
            torch_losses.coordinates(x, coordinates), torch_losses.coordinates(y, coordinates), reduction="sum")
        value.backward()
        found = jax.value_and_grad(lambda a, kind=coordinates: jnp.abs(
            matching.coordinates(a, kind) - matching.coordinates(b, kind)).sum())(jnp.asarray(a))
        parity(f"L1 of {coordinates}, value and gradient", found, (value, x.grad))


@pytest.mark.parametrize("config", CONFIGS[:8], ids=CONFIG_NAMES[:8])
def test_set_loss_equals_torch(config, precision, parity):
    """Every part and its gradients by logits and segments, for given matches: catches a term whose value is right and
    whose gradient is not (a stop-gradient, a clamp), a target given to another proposal, a normaliser."""
    pytest.importorskip("torch")
    from tests.reference import torch_losses
    from tests.reference.torch_trees import gradients, tensors

    predictions, batch = jax.tree.map(lambda x: x.astype(precision) if x.dtype == np.float32 else x, problem())
    matches = np.stack([np.random.default_rng(k).permutation(N)[:M] for k in range(S * B)]).reshape(S, B, M)
    theirs = tensors(predictions)
    expected = torch_losses.losses(theirs, batch, matches, config)
    expected["loss"].backward()

    def compute(predictions):
        return losses.compute_losses(predictions, batch, config, matches=matches)

    (_, metrics), gradient = run_once(jax.value_and_grad(compute, has_aux=True), predictions)
    parity("total and parts", metrics, expected)
    for name, value in gradients(theirs).items():
        parity(f"gradient by {name}", gradient[name], value)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_action_loss_equals_torch(reduction, precision, parity):
    """The reduction over classes mistaken for that over the batch."""
    torch = pytest.importorskip("torch")
    logits, labels = problem()[0]["clip_logits"].astype(precision), problem()[1]["clip_labels"].astype(precision)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(labels))
    expected = expected * (A if reduction == "sum" else 1)
    expected.backward()
    found = jax.value_and_grad(losses.action_loss)(jnp.asarray(logits), labels, reduction)
    parity("value and gradient", found, (expected, x.grad))
