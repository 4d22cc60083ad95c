"""Trees of NumPy arrays as trees of torch tensors, and back as gradients."""

from typing import Any

import jax
import numpy as np
import torch


def cast(tree: Any, dtype: str) -> Any:
    """NumPy arrays of `dtype`."""
    return jax.tree.map(lambda x: np.asarray(x, dtype), tree)


def tensors(tree: Any) -> Any:
    """Tensors that collect gradients, with the values and dtypes of the arrays."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), tree)


def gradients(tree: Any) -> Any:
    """What `backward` left in the tensors; 0 where it did not arrive."""
    return jax.tree.map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad, tree)
