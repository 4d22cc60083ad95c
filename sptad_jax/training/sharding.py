"""One mesh axis, "data": batches split over it, state replicated, or split too (train.shard_state)."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sptad_jax.errors import UserError

MIN_SPLIT = 1024  # elements of a leaf


def make_mesh(batch_size: int) -> Mesh:
    """A mesh over every device of every process.

    Axes are Auto: under the Explicit default of recent JAX, the scatters of matching and SoI Align are refused.
    Raises UserError when the global batch cannot be split evenly.
    """
    count = jax.device_count()
    if batch_size % count:
        raise UserError(
            f"train.batch_size ({batch_size}) must be a multiple of the number of devices ({count}); "
            f"use --set train.batch_size={max(1, round(batch_size / count)) * count}."
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every leaf on every device; gathers what is split."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def split(tree: Any, mesh: Mesh) -> Any:
    """Puts a part of every leaf on every device, as `split_shardings` says."""
    return jax.device_put(tree, split_shardings(tree, mesh))


def split_shardings(tree: Any, mesh: Mesh) -> Any:
    """Leaf -> how the devices share it: along its longest axis that they divide evenly.

    Whole where there is none, and for leaves below 4 kB, which a message costs more than they do. This is ZeRO's third
    stage (arXiv 1910.02054, section 5.3) by shardings alone, as in the scaling book (jax-ml/scaling-book training.md).
    """
    count = mesh.shape["data"]

    def choose(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
        if not axes or leaf.size < MIN_SPLIT:
            return NamedSharding(mesh, P())
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * axis, "data"))

    return jax.tree.map(choose, tree)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Local arrays [B_local, ...] of every process -> global arrays [B, ...] split over the mesh on axis 0."""
    sharding = NamedSharding(mesh, P("data"))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def round_up(batch_size: int, count: int) -> int:
    """The next batch size that splits evenly over `count` devices."""
    return -(-batch_size // count) * count


def local_mesh() -> Mesh:
    """A mesh over the devices of this process alone: a computation on it waits for no other process."""
    return Mesh(np.array(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))


def replicate_locally(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are replicated over all processes -> copies on every device of this one's `local_mesh`."""
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), NamedSharding(mesh, P())), tree)
