"""The dtype of what half precision would spoil: sums, statistics, coordinates and losses."""

from typing import Any

import jax.numpy as jnp


def wide(x: Any) -> jnp.dtype:
    """float32 for an array of at most 32 bits, whole numbers and booleans too; float64 for float64.

    JAX holds float64 under `jax_enable_x64` alone; tests compute in it, to tell a wrong formula from rounding.
    """
    return jnp.promote_types(x.dtype, jnp.float32)
