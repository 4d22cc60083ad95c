"""The dtype of sums, statistics and coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.precision import wide


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("bool", "float32"),
                                                 ("int32", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_wide(dtype, expected):
    """Half precision kept, float64 narrowed (which would void the parity tests in it), or all widened to float64."""
    with jax.enable_x64(True):
        x = jnp.ones(2, dtype)
        assert wide(x) == expected and x.astype(wide(x)).dtype == expected
    assert wide(np.ones(2, np.float32)) == np.float32
