"""Segment geometry against scalar arithmetic, in NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax import segments
from tests.reference.matching import giou_scalar, tiou_scalar

point = st.floats(-2, 3, width=32)
segment = st.tuples(point, point).map(lambda pair: (min(pair), max(pair)))
pairs = st.lists(st.tuples(segment, segment), min_size=4, max_size=4)  # one size, so that JAX compiles once
KINDS = [np.asarray, jnp.asarray]


def both(values, kind):
    array = np.array(values, np.float32)
    return kind(array[:, 0]), kind(array[:, 1])


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "jax"])
@given(values=pairs)
@settings(deadline=None, max_examples=40)
def test_overlaps_equal_scalars(kind, values):
    """A wrong union, hull, sign or clamp, and an answer of another kind than the arguments."""
    a, b = both(values, kind)
    answers = segments.tiou(a, b), segments.giou(a, b), segments.tioa(a, b)
    assert all(isinstance(answer, type(a)) for answer in answers)
    for i, (x, y) in enumerate(values):
        overlap, length = max(0.0, min(x[1], y[1]) - max(x[0], y[0])), x[1] - x[0]
        if length > 1e-3 and y[1] - y[0] > 1e-3:
            expected = tiou_scalar(x, y), giou_scalar(x, y), overlap / length
            np.testing.assert_allclose([float(answer[i]) for answer in answers], expected, rtol=1e-4, atol=2e-4)
    assert np.all(np.asarray(answers[0]) >= 0) and np.all(np.asarray(answers[0]) <= 1 + 1e-6)
    assert np.all(np.asarray(answers[1]) >= -1 - 1e-6) and np.all(np.asarray(answers[1] <= answers[0] + 1e-6))


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "jax"])
@given(values=pairs)
@settings(deadline=None, max_examples=20)
def test_conversions_equal_scalars_and_invert(kind, values):
    """Centre and width swapped, a width halved twice, a round trip that moves a segment."""
    a, _ = both(values, kind)
    cw = segments.se_to_cw(a)
    expected = [((s + e) / 2, e - s) for (s, e), _ in values]
    np.testing.assert_allclose(cw, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(segments.cw_to_se(cw), a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "jax"])
def test_expansion_of_the_paper(kind):
    """eta taken as total growth, or as growth of one side only: (0.4, 0.6) grows by 1/5 on either side (3.1.3)."""
    grown = segments.expand(kind(np.array([[0.4, 0.6], [0.5, 0.5]], np.float32)), 5.0)
    np.testing.assert_allclose(grown, [[0.36, 0.64], [0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize(("a", "b", "tiou", "giou", "tioa"), [
    ((0.0, 0.2), (0.8, 1.0), 0.0, -0.6, 0.0),  # apart: hull 1, union 0.4
    ((0.0, 1.0), (0.0, 1.0), 1.0, 1.0, 1.0),
    ((0.0, 0.5), (0.5, 1.0), 0.0, 0.0, 0.0),  # touching
    ((0.2, 0.4), (0.0, 1.0), 0.2, 0.2, 1.0),  # inside
    ((0.0, 0.6), (0.4, 1.0), 0.2, 0.2, 1 / 3),
    ((0.5, 0.5), (0.5, 0.5), 0.0, 0.0, 0.0),  # both empty
    ((0.1, 0.1), (0.5, 0.5), 0.0, -1.0, 0.0),  # empty and apart
])
def test_table(a, b, tiou, giou, tioa):
    """Published and hand-computed values, also for empty segments."""
    a, b = np.array(a), np.array(b)
    got = segments.tiou(a, b), segments.giou(a, b), segments.tioa(a, b)
    np.testing.assert_allclose(got, (tiou, giou, tioa), atol=1e-12)


def test_shapes_broadcast():
    """Pairwise tables would have the wrong axes."""
    a, b = np.zeros((3, 1, 2)) + [0, 1], np.zeros((1, 4, 2)) + [0, 2]
    assert segments.giou(a, b).shape == segments.tiou(a, b).shape == segments.tioa(a, b).shape == (3, 4)


@pytest.mark.parametrize("function", [segments.tiou, segments.giou, segments.tioa])
def test_gradients_of_empty_segments_are_finite(function):
    """0/0 in the branch that `where` does not take turns the gradient into NaN."""
    a = jnp.array([[0.5, 0.5], [0.2, 0.2], [0.0, 1.0], [0.3, 0.3]])
    b = jnp.array([[0.5, 0.5], [0.8, 0.8], [0.0, 1.0], [0.1, 0.9]])
    for gradient in jax.jit(jax.grad(lambda a, b: function(a, b).sum(), argnums=(0, 1)))(a, b):
        assert np.all(np.isfinite(gradient))


def test_gradient_equals_finite_differences():
    """A stop_gradient or a clamp in the wrong place."""
    a, b = np.array([0.21, 0.57]), np.array([0.4, 0.9])
    for function in (segments.tiou, segments.giou, segments.tioa):
        gradient = jax.grad(lambda x, f=function: f(x, jnp.asarray(b, jnp.float32)))(jnp.asarray(a, jnp.float32))
        steps = np.eye(2) * 1e-6
        numeric = [(function(a + d, b) - function(a - d, b)) / 2e-6 for d in steps]
        np.testing.assert_allclose(gradient, numeric, rtol=1e-3)
