"""Stages against torch.nn parts, the refinement against its formula, and the flow of gradients between stages."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.config import ModelConfig
from sptad_jax.models import detection_head
from tests.reference.parameters import draw_variables, run_once

TINY = ModelConfig(
    hidden_dim=16, num_heads=4, dynamic_dim=6, ffn_dim=24, soi_bins=4, num_proposals=5, num_stages=2, prior_prob=0.2,
)
RNG = np.random.default_rng(0)
LEVELS = [RNG.normal(size=(2, t, 16)).astype(np.float32) for t in (16, 8, 4, 2)]


def make_head(**changes):
    return detection_head.DetectionHead(dataclasses.replace(TINY, **changes), num_classes=3)


def shapes_of(head, levels=LEVELS):
    return jax.eval_shape(lambda x: head.init_with_output(jax.random.key(0), x, train=False), levels)


@pytest.mark.parametrize("tower", ["paper", "sparse_rcnn"])
def test_two_stages_equal_torch(tower, parity):
    """Intermediates of both stages: catches wrong norms, residuals, heads of attention, branches, hand-over."""
    pytest.importorskip("torch")
    import torch

    from tests.reference.torch_stage import refine, run_stage
    from tests.reference.torch_trees import tensors

    head = make_head(tower=tower)
    variables = draw_variables(head, LEVELS, train=False)
    logits, segments_se, out = run_once(lambda v, x: head.apply(v, x, train=False), variables, LEVELS)
    params = tensors(variables["params"])
    features = params["proposal_features"].expand(2, -1, -1)
    start = torch.tensor(np.asarray(out["proposal_segments_se"]))
    for stage in range(2):
        soi = torch.tensor(np.asarray(out[f"stage_{stage}/soi_features"]))
        expected, deltas, before, features = run_stage(params[f"stage_{stage}"], features, soi, head.config)
        start = refine(start, deltas, "log_width")
        parity("class logits", logits[stage], expected)
        parity("features before the FFN", out[f"stage_{stage}/interacted"], before)
        parity("features after the FFN", out[f"stage_{stage}/segment_features"], features)
        parity("segments", segments_se[stage], start)
    shapes = {key: value["kernel"].shape for key, value in variables["params"]["stage_0"].items() if "kernel" in value}
    assert shapes["class_logits"] == (16, 3) and shapes["deltas"] == (16, 2)


def refine_by_hand(segments_se, deltas):
    result = []
    for (start, end), (shift, grow) in zip(segments_se, deltas, strict=True):
        width = end - start
        centre = (start + end) / 2 + shift / 2 * width
        width = width * math.exp(min(grow, math.log(100000 / 16)))
        result.append((centre - width / 2, centre + width / 2))
    return np.array(result)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-100, 200), st.integers(1, 150), st.integers(-300, 300), st.integers(-300, 1000)),
                min_size=4, max_size=4))  # fmt: skip
def test_refinement_formula(rows):
    """Log-width form with its weights (2, 1) and clamp at 8.74: catches a swap, a missing weight, a two-sided clamp."""
    values = np.array(rows, np.float64) / 100
    segments_se = np.stack([values[:, 0], values[:, 0] + values[:, 1]], axis=-1)
    actual = refine_jitted(segments_se.astype(np.float32), values[:, 2:].astype(np.float32))
    expected = refine_by_hand(segments_se, values[:, 2:])
    width = (expected[:, 1] - expected[:, 0])[:, None]
    assert (np.abs(np.asarray(actual) - expected) <= 1e-4 * (1 + width)).all()


@jax.jit
def refine_jitted(segments_se, deltas):
    return detection_head.refine(segments_se, deltas, "log_width")


def test_zero_deltas_change_nothing():
    """Both parametrisations start from the identity; the inverse sigmoid alone stays inside the window."""
    segments_se = jnp.array([[0.1, 0.9], [0.45, 0.55], [0.25, 0.5]])
    for kind in ("log_width", "inverse_sigmoid"):
        np.testing.assert_allclose(detection_head.refine(segments_se, jnp.zeros((3, 2)), kind), segments_se, atol=1e-6)


def test_inverse_sigmoid_equals_scipy():
    """(c, w)' = expit(d + logit(c, w)); a segment that fills the window stays finite."""
    deltas = RNG.normal(size=(4, 2)).astype(np.float32)
    segments_cw = np.array([[0.5, 0.2], [0.3, 0.6], [0.9, 0.1], [0.5, 1.0]], np.float32)
    segments_se = np.stack([segments_cw[:, 0] - segments_cw[:, 1] / 2, segments_cw[:, 0] + segments_cw[:, 1] / 2], -1)
    refined = np.asarray(detection_head.refine(jnp.asarray(segments_se), jnp.asarray(deltas), "inverse_sigmoid"))
    centre, width = scipy.special.expit(deltas + scipy.special.logit(np.minimum(segments_cw, 0.999))).T
    np.testing.assert_allclose(refined, np.stack([centre - width / 2, centre + width / 2], -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes, flows", [
    # does the last stage's segment reach: initial segments, stage 0's deltas, stage 0's feed-forward, initial features?
    ({}, (False, False, True, True)),
    ({"detach_segments": False}, (True, True, True, True)),
    ({"detach_segments": False, "detach_proposals": True}, (False, True, True, True)),
    ({"num_stages": 1}, (True, True, True, True)),
    ({"stage_features": "pre_ffn"}, (False, False, False, True)),
], ids=lambda c: "-".join(map(str, c)) if isinstance(c, dict) else "")  # fmt: skip
def test_gradients_between_stages(changes, flows):
    """Segments are detached, features are not; catches a stop_gradient too many, too few, or in the wrong place."""
    head = make_head(**changes)
    variables = draw_variables(head, LEVELS, train=False)
    grads = run_once(jax.grad(lambda v: (head.apply(v, LEVELS, train=True)[1][-1] ** 2).sum()), variables)["params"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    reached = (grads["proposal_segments"], grads["stage_0"]["deltas"]["kernel"],
               grads["stage_0"]["ffn_hidden"]["kernel"], grads["proposal_features"])  # fmt: skip
    assert tuple(bool(np.abs(x).max() > 0) for x in reached) == flows


def test_clip_segments_keeps_them_inside():
    """Large deltas leave the window unless the option forbids it."""
    for clip in (False, True):
        head = make_head(clip_segments=clip, num_stages=1)
        variables = draw_variables(head, LEVELS, train=False)
        variables["params"]["stage_0"]["deltas"]["bias"] = np.array([3.0, 1.0], np.float32)
        segments_se = np.asarray(run_once(lambda v, h=head: h.apply(v, LEVELS, train=False)[1], variables))
        inside = segments_se.min() >= 0 and segments_se.max() <= 1
        assert inside == clip


def test_dropout_needs_a_key_only_in_training():
    """Dropout acts on training passes alone, differently for two keys: catches a flag that is the wrong way round."""
    head = make_head(dropout=0.5, num_stages=1)
    variables = draw_variables(head, LEVELS, train=False)
    plain = make_head(num_stages=1)

    def passes(variables):
        keys = [jax.random.key(k) for k in (0, 0, 1)]
        train = [head.apply(variables, LEVELS, train=True, rngs={"dropout": key})[0] for key in keys]
        return *train, head.apply(variables, LEVELS, train=False)[0], plain.apply(variables, LEVELS, train=True)[0]

    first, again, other, evaluated, without = run_once(passes, variables)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_allclose(evaluated, without, rtol=1e-5, atol=1e-6)


def test_stages_and_sharing():
    """Rows of Table 6: S outputs; unshared stages have their own parameters, shared ones are one module."""
    for stages, shared, modules in ((1, False, 1), (4, False, 4), (3, True, 1)):
        (logits, segments_se, _), variables = shapes_of(make_head(num_stages=stages, share_stages=shared))
        assert logits.shape == (stages, 2, 5, 3) and segments_se.shape == (stages, 2, 5, 2)
        assert logits.dtype == segments_se.dtype == jnp.float32
        names = {f"stage_{k}" for k in range(modules)} | {"proposal_segments", "proposal_features"}
        assert set(variables["params"]) == names


def test_parameter_count_at_defaults():
    """10.78 million a stage without its branches (attention, interaction, feed-forward): catches a wrong width."""
    levels = [jax.ShapeDtypeStruct((1, t, 256), jnp.float32) for t in (128, 64, 32, 16)]
    head = detection_head.DetectionHead(ModelConfig(), num_classes=20)
    (logits, _, _), variables = shapes_of(head, levels)
    stage = variables["params"]["stage_3"]
    count = {name: sum(x.size for x in jax.tree.leaves(value)) for name, value in stage.items()}
    branches = sum(size for name, size in count.items() if name.startswith(("class", "delta")))
    assert branches == 256 * 20 + 20 + 2 * (256 * 256 + 256) + 256 * 2 + 2
    matrices = 256 * 32768 + 4096 * 256 + 4 * 256 * 256 + 2 * 256 * 2048
    assert (sum(count.values()) - branches) / 1e6 == pytest.approx(10.78, abs=0.01)
    assert matrices < sum(count.values()) - branches < matrices * 1.01
    assert logits.shape == (4, 1, 50, 20)


def test_initial_values():
    """Prior probability, xavier bounds (PyTorch's joint query-key-value matrix), zero start of the inverse sigmoid."""
    stage = detection_head.Stage(dataclasses.replace(TINY, delta="inverse_sigmoid", prior_prob=0.01), 3)
    features, segments_se = np.zeros((1, 5, 16), np.float32), np.tile(np.float32([0.0, 1.0]), (1, 5, 1))
    levels = [x[:1] for x in LEVELS]
    params = run_once(
        lambda key: stage.init(key, features, segments_se, levels, train=False), jax.random.key(0)
    )["params"]
    np.testing.assert_allclose(scipy.special.expit(params["class_logits"]["bias"]), 0.01, rtol=1e-5)
    assert not params["deltas"]["kernel"].any()
    for name, bound in (("query", math.sqrt(6 / 64)), ("ffn_hidden", math.sqrt(6 / 40)),
                        ("attention_output", math.sqrt(6 / 32))):  # fmt: skip
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.9 * bound < largest <= bound, name


@pytest.mark.parametrize("kind", ["image", "random", "grid", "centre"])
def test_initial_segments(kind):
    """The four choices of Sparse R-CNN's ablation, as (centre, width) shares of the window."""
    cw = np.asarray(detection_head.initial_segments(jax.random.key(0), 9, kind))
    assert cw.shape == (9, 2) and cw.dtype == np.float32
    expected = {
        "image": np.tile([0.5, 1.0], (9, 1)),
        "centre": np.tile([0.5, 0.1], (9, 1)),
        "grid": [[1 / 2, 1], [1 / 4, 1 / 2], [3 / 4, 1 / 2], [1 / 8, 1 / 4], [3 / 8, 1 / 4], [5 / 8, 1 / 4],
                 [7 / 8, 1 / 4], [1 / 4, 1 / 8], [3 / 4, 1 / 8]],
    }  # fmt: skip
    if kind == "random":
        assert cw.min() >= 0 and cw.max() <= 1 and len(np.unique(cw)) == 18
    else:
        np.testing.assert_allclose(cw, expected[kind])


def test_learned_width_never_reaches_zero():
    """An optimiser may push a width through 0; segments must still end after they start."""
    se = np.asarray(detection_head.to_valid_segments(jnp.array([[0.5, -0.2], [0.5, 0.0], [0.3, 0.4]])))
    assert (se[:, 1] > se[:, 0]).all()
    np.testing.assert_allclose(se[2], [0.1, 0.5], atol=1e-6)


OPTIONS = {
    "num_proposals": 6, "proposal_init": "grid", "detach_proposals": True, "eta": 4.0, "soi_bins": 3,
    "soi_align": "legacy", "sampling_ratio": 0, "level_rule": "ceil", "num_heads": 2, "dynamic_dim": 5, "ffn_dim": 20,
    "dropout": 0.1, "num_stages": 3, "share_stages": True, "tower": "sparse_rcnn", "delta": "inverse_sigmoid",
    "clip_segments": True, "detach_segments": False, "stage_features": "pre_ffn", "prior_prob": 0.3, "hidden_dim": 32,
}  # fmt: skip


def trace(**changes):
    """The program of initialisation and of a training pass, as text."""
    head = make_head(**changes)
    levels = [jax.ShapeDtypeStruct((1, t, head.config.hidden_dim), jnp.float32) for t in (16, 8, 4, 2)]
    return str(jax.make_jaxpr(lambda key, x: head.init_with_output({"params": key, "dropout": key}, x, train=True))(
        jax.random.key(0), levels))  # fmt: skip


@pytest.fixture(scope="module")
def default_trace():
    return trace()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_program(option, default_trace):
    """Catches an option that nothing reads."""
    assert trace(**{option: OPTIONS[option]}) != default_trace
