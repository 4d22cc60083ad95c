"""Level choice and 1-D SoI Align against one-sample-at-a-time loops in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sptad_jax.models import soi_align
from tests.reference import soi_align as reference

RULES = ("floor", "round", "ceil", "expanded")
LENGTHS = (16, 8, 4, 2)
BATCH, NUM, BINS = 2, 4, 4
RNG = np.random.default_rng(0)
LEVELS = [RNG.normal(size=(BATCH, t, 3)).astype(np.float32) for t in LENGTHS]


@functools.cache
def compiled(convention: str, ratio: int):
    return jax.jit(lambda levels, se, level: soi_align.soi_align(levels, se, level, BINS, convention, ratio, 8))


def test_paper_level_table():
    """Eq. 1 at T = 256: catches a wrong l0 and an open bound where FPN's is closed."""
    frames = np.array([1, 63.9, 64, 127.9, 128, 255, 256, 1000, 0, -5], np.float32)
    segments_se = np.stack([np.zeros_like(frames), frames / 256], axis=-1)
    level = soi_align.choose_level(jnp.asarray(segments_se), 4, "floor")
    assert level.dtype == jnp.int32
    np.testing.assert_array_equal(level, [0, 0, 1, 1, 2, 2, 3, 3, 0, 0])


@pytest.mark.parametrize("rule", RULES)
def test_level_rules_follow_the_logarithm(rule):
    """Catches a rule that rounds the wrong way, ignores eta, or clamps to the wrong range."""
    shares = np.exp(RNG.uniform(np.log(0.01), np.log(4), 200)).astype(np.float32)
    segments_se = jnp.stack([jnp.zeros(200), jnp.asarray(shares)], axis=-1)
    for num_levels, eta in ((4, 5.0), (1, 5.0), (3, 2.0)):
        expected = [reference.choose_level(float(s), num_levels, rule, eta) for s in shares]
        np.testing.assert_array_equal(soi_align.choose_level(segments_se, num_levels, rule, eta), expected)


def test_ceil_of_an_exact_power_stays():
    """ceil(l0 + log2 0.5) is l0 - 1: catches a closed bound in the ceil rule."""
    level = soi_align.choose_level(jnp.array([[0.0, 0.5], [0.0, 0.5001]]), 4, "ceil")
    np.testing.assert_array_equal(level, [2, 3])


@settings(deadline=None, max_examples=25)
@given(st.data(), st.sampled_from(["aligned", "legacy"]), st.sampled_from([1, 2, 3, 0]))
def test_align_equals_loop(data, convention, ratio):
    """Segments inside, outside and across the window, on every level: catches offsets, clamps and level bases."""
    size = {"min_size": BATCH * NUM, "max_size": BATCH * NUM}
    start = np.array(data.draw(st.lists(st.integers(-8000, 18000), **size)), np.float32) / np.float32(10007)
    width = np.array(data.draw(st.lists(st.integers(0, 15000), **size)), np.float32) / np.float32(10007)
    segments_se = np.stack([start, start + width], axis=-1).reshape(BATCH, NUM, 2)
    level = np.array(data.draw(st.permutations([0, 1, 2, 3] * 2)), np.int32).reshape(BATCH, NUM)
    for se, chosen in zip(segments_se.reshape(-1, 2), level.reshape(-1), strict=True):
        length = LENGTHS[chosen]
        positions = reference.sample_positions(length, float(se[0]), float(se[1]), BINS, convention, ratio)
        # a float32 position beside the edge of validity may fall on its other side; so may a count of samples
        assume(np.abs(positions + 1).min() > 1e-4 and np.abs(positions - length).min() > 1e-4)
        share = (se[1] - se[0]) * length / BINS
        assume(ratio or abs(share - round(float(share))) > 1e-4)
    actual = compiled(convention, ratio)(LEVELS, segments_se, level)
    expected = reference.soi_align(LEVELS, segments_se, level, BINS, convention, ratio)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def test_conventions_by_hand():
    """A ramp read at four unit bins: aligned gives the values at 0..3, legacy lies half a step later."""
    ramp = jnp.arange(8.0)[None, :, None]
    segments_se, level = jnp.array([[[0.0, 0.5]]]), jnp.zeros((1, 1), jnp.int32)
    aligned = soi_align.soi_align([ramp], segments_se, level, 4, "aligned", 1)
    legacy = soi_align.soi_align([ramp], segments_se, level, 4, "legacy", 1)
    np.testing.assert_allclose(aligned[0, 0, :, 0], [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(legacy[0, 0, :, 0], [0.5, 1.5, 2.5, 3.5], atol=1e-6)


def test_edges_of_validity_are_closed():
    """Samples exactly at -1 and at T_l read the edge step, beyond them 0: catches open bounds."""
    ones = jnp.ones((1, 4, 1))
    starts = np.array([-1.0, -1.25, 4.0, 4.25]) / 4  # legacy, zero width -> one step; its first bin of 1 starts there
    segments_se = jnp.asarray(np.stack([starts - 0.125, starts + 0.125], axis=-1)[None], jnp.float32)
    read = soi_align.soi_align([ones], segments_se, jnp.zeros((1, 4), jnp.int32), 1, "legacy", 1)
    np.testing.assert_array_equal(read[0, :, 0, 0], [1, 0, 1, 0])


def test_gradient_reaches_features_not_segments():
    """The reading is linear in the features, so <gradient, x> is the output; coordinates are constants."""
    weight = jnp.asarray(RNG.normal(size=(BATCH, NUM, BINS, 3)), jnp.float32)
    segments_se = jnp.asarray(RNG.uniform(0, 0.4, (BATCH, NUM, 1)) + [0.0, 0.5], jnp.float32)
    level = jnp.asarray(RNG.integers(0, 4, (BATCH, NUM)), jnp.int32)

    def total(levels, se):
        return (soi_align.soi_align(levels, se, level, BINS) * weight).sum()

    levels = [jnp.asarray(x) for x in LEVELS]
    value, (to_levels, to_segments) = jax.jit(jax.value_and_grad(total, (0, 1)))(levels, segments_se)
    inner = sum(float((g * x).sum()) for g, x in zip(to_levels, levels, strict=True))
    assert inner == pytest.approx(float(value), rel=1e-4, abs=1e-4)
    np.testing.assert_array_equal(to_segments, 0)


@pytest.mark.parametrize("rule", RULES)
def test_adaptive_limit_is_enough(rule):
    """No segment up to twice the window needs more samples than the static limit: catches one that cuts samples off."""
    for lengths, bins, eta in (((128, 64, 32, 16), 16, 5.0), ((384, 192, 96, 48), 16, 2.0), ((32,), 8, 5.0)):
        limit = soi_align.max_adaptive_samples(lengths, bins, rule, eta)
        for share in np.concatenate([np.linspace(0.001, 2, 500), [0.2499, 0.4999, 0.9999]]):
            level = reference.choose_level(float(share), len(lengths), rule, eta)
            assert math.ceil(share * (1 + 2 / eta) * lengths[level] / bins - 1e-9) <= limit
    assert soi_align.max_adaptive_samples((128, 64, 32, 16), 16, "floor", 5.0) == 3


def test_read_segments_expands_and_chooses_before_expansion():
    """(0.4, 0.6) with eta 5 is read from (0.36, 0.64), on the level of 0.2: catches the two orders swapped."""
    levels = [jnp.asarray(x[:1]) for x in LEVELS]
    soi, out = soi_align.read_segments(
        levels, jnp.array([[[0.4, 0.6], [0.1, 0.55]]]), num_bins=BINS, convention="aligned", sampling_ratio=2,
        level_rule="floor", eta=5.0)  # fmt: skip
    np.testing.assert_allclose(out["expanded_segments_se"][0, 0], [0.36, 0.64], atol=1e-6)
    np.testing.assert_array_equal(out["level"], [[0, 1]])
    expanded_se = np.asarray(out["expanded_segments_se"])
    expected = reference.soi_align(LEVELS, expanded_se, np.array([[0, 1]]), BINS, "aligned", 2)
    np.testing.assert_allclose(soi, expected, rtol=1e-4, atol=1e-5)
