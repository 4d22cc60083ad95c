"""Parameters drawn by NumPy: no compilation, and no initial value that a parity test could hide behind.

And a way to run a function once, for which compiling costs far more than running.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

UNOPTIMISED: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def draw_variables(module: nn.Module, *args: Any, seed: int = 0, **kwargs: Any) -> Any:
    """Variables of `module` for these arguments (arrays or ShapeDtypeStructs), float32, from a NumPy generator.

    Kernels are normal / sqrt(inputs), scales and variances near 1, the rest small normal; learnable segments
    (centre, width) lie well inside the window and have many lengths.
    """
    shapes = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a, **kwargs), *args)
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        noise = rng.normal(size=leaf.shape)
        if name == "kernel":
            noise = noise / np.sqrt(max(1, leaf.size // leaf.shape[-1]))
        elif name in ("scale", "var"):
            noise = 1.0 + 0.1 * np.abs(noise)
        elif name == "proposal_segments":
            noise = np.stack([rng.uniform(0.2, 0.8, leaf.shape[0]), np.geomspace(0.05, 1.0, leaf.shape[0])], axis=-1)
        elif name != "proposal_features":
            noise = 0.1 * noise
        return noise.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run_once(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), compiled whole but without XLA's optimiser: a quarter of the compile time."""
    return jax.jit(function, compiler_options=UNOPTIMISED)(*args)
