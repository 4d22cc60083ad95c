"""Random arrays, and a comparison that suits sums of many terms."""

import numpy as np

from sptad_jax.models.pretrained import flatten


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(a, b, tolerance=1e-4):
    """Relative to the largest entry, as sums in another order differ most where terms cancel."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b)) <= tolerance * max(np.max(np.abs(b)), 1e-8)


def assert_same_bits(found, expected):
    """Two trees of arrays with the same paths, shapes, dtypes and bytes; NaN and -0 count as they are."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name
