"""One-to-one assignment of targets to proposals (paper 3.2.1): the cost on the device, the optimum by a library.

Every stage and every window is a problem of its own; all of them are solved in one call. The paper does not write the
matching cost down; the terms are those of Sparse R-CNN (projects/SparseRCNN/sparsercnn/loss.py:249-273), in one
dimension: focal classification cost, L1 and generalised tIoU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.sharding import Mesh, PartitionSpec

from sptad_jax import segments as geometry
from sptad_jax.config import LossConfig
from sptad_jax.errors import UserError
from sptad_jax.precision import wide

Array = Any

# Costs beyond this bound say no more than "hopeless"; a bound keeps float32 assignment exact for the costs that matter.
MAX_COST = 1e4


def focal_cost(class_logits: Array, alpha: float, gamma: float) -> Array:
    """Cost of naming a proposal each class: focal loss of a positive minus that of a negative.

    [..., A] -> [..., A] float32. Source: Sparse R-CNN loss.py:249-251 (p^gamma forms, 1e-8 inside the logarithms).
    """
    probability = jax.nn.sigmoid(class_logits.astype(jnp.float32))
    negative = (1 - alpha) * probability**gamma * -jnp.log(1 - probability + 1e-8)
    positive = alpha * (1 - probability) ** gamma * -jnp.log(probability + 1e-8)
    return positive - negative


def overlap(a_se: Array, b_se: Array, kind: str) -> Array:
    """Generalised or plain tIoU ("giou" or "tiou"), float32 or wider; an end before its start is an empty segment.

    Shapes broadcast: [..., 2], [..., 2] -> [...].
    """
    a_se, b_se = (jnp.stack([x[..., 0], jnp.maximum(x[..., 0], x[..., 1])], axis=-1).astype(wide(x))
                  for x in (a_se, b_se))
    return geometry.giou(a_se, b_se) if kind == "giou" else geometry.tiou(a_se, b_se)


def coordinates(segments_se: Array, kind: str) -> Array:
    """The coordinates that L1 compares: "start_end" (paper eq. 3) or "centre_width". [..., 2] -> [..., 2] float32."""
    segments_se = segments_se.astype(wide(segments_se))
    return segments_se if kind == "start_end" else geometry.se_to_cw(segments_se)


def matching_cost(class_logits: Array, segments_se: Array, segments_norm: Array, labels: Array, valid: Array,
                  config: LossConfig) -> Array:
    """Cost of giving proposal n to target m, without gradient.

    Args:
      class_logits: [S, B, N, A], any floating dtype.
      segments_se: [S, B, N, 2], predicted (start, end) as share of the window.
      segments_norm: [B, M, 2], targets (start, end) as share of the window.
      labels: int [B, M]; values of padded targets are ignored.
      valid: bool [B, M]; False marks padding.
      config: weights of the three terms, focal parameters, L1 coordinates and kind of overlap.

    Returns:
      [S, B, N, M] float32, finite; 0 for padded targets, which cannot move the optimum of the real ones while N >= M.
    """
    num_classes = class_logits.shape[-1]
    by_class = focal_cost(class_logits, config.focal_alpha, config.focal_gamma)
    columns = jnp.clip(labels, 0, num_classes - 1)[None, :, None, :]
    class_term = jnp.take_along_axis(by_class, columns, axis=-1)  # [S,B,N,M]
    predicted, targets = segments_se[:, :, :, None, :], segments_norm[None, :, None, :, :]
    kind = config.l1_coordinates
    l1_term = jnp.abs(coordinates(predicted, kind) - coordinates(targets, kind)).sum(-1)
    cost = (config.class_cost * class_term + config.l1_cost * l1_term
            - config.giou_cost * overlap(predicted, targets, config.iou))
    # A diverged prediction must neither hang the assignment nor be taken for a good one.
    cost = jnp.clip(jnp.nan_to_num(cost, nan=MAX_COST, posinf=MAX_COST, neginf=MAX_COST), -MAX_COST, MAX_COST)
    return jax.lax.stop_gradient(jnp.where(valid[None, :, None, :], cost, 0.0))


def _assign_on_host(cost: Any) -> np.ndarray:
    """SciPy's assignment for a batch of problems: [P, N, M] with N >= M -> int32 [P, M], the row of each column."""
    cost = np.asarray(cost)
    rows_of_columns = np.empty((cost.shape[0], cost.shape[2]), np.int32)
    for problem in range(cost.shape[0]):
        rows, columns = scipy.optimize.linear_sum_assignment(cost[problem])
        rows_of_columns[problem, columns] = rows
    return rows_of_columns


def _assign_on_device(cost: Array) -> Array:
    """Optax's assignment for one problem: [N, M] with N >= M -> int32 [M], the row of each column."""
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[1], jnp.int32).at[columns].set(rows.astype(jnp.int32))


def assign(cost: Array, backend: str, mesh: Mesh | None = None) -> Array:
    """Cheapest one-to-one assignment of all columns to rows.

    Args:
      cost: [S, B, N, M] float32, finite, N >= M.
      backend: "optax" (on the device) or "scipy" (on the host, through a callback, which also keeps the compiled
        program out of JAX's persistent cache).
      mesh: when it has more than one device, B is taken as sharded over it and each device solves its own windows:
        a callback in a global program would gather every window to one device, and a loop vectorised over all
        devices would synchronise them at each of its steps.

    Returns:
      int32 [S, B, M], the row (proposal) given to each column (target); distinct within a problem.
    """
    if backend not in ("scipy", "optax"):
        raise UserError(f"config: loss.matcher is {backend!r}; choose one of optax, scipy.")

    def solve(cost: Array) -> Array:
        num_stages, batch, num_proposals, num_targets = cost.shape
        problems = cost.reshape(num_stages * batch, num_proposals, num_targets)
        if backend == "scipy":
            answer = jax.ShapeDtypeStruct((num_stages * batch, num_targets), jnp.int32)
            matches = jax.pure_callback(_assign_on_host, answer, problems)
        else:
            matches = jax.vmap(_assign_on_device)(problems)
        return matches.reshape(num_stages, batch, num_targets)

    if mesh is None or mesh.size == 1:
        return solve(cost)
    if cost.shape[1] % mesh.size:
        raise UserError(f"a batch of {cost.shape[1]} windows cannot be shared by {mesh.size} devices; make "
                        "train.batch_size / train.accumulate a multiple of the number of devices.")
    by_batch = PartitionSpec(None, mesh.axis_names)
    return jax.shard_map(solve, mesh=mesh, in_specs=by_batch, out_specs=by_batch, check_vma=False)(cost)


def match(class_logits: Array, segments_se: Array, segments_norm: Array, labels: Array, valid: Array,
          config: LossConfig, backend: str | None = None, mesh: Mesh | None = None) -> Array:
    """Gives each target a proposal of its own, per stage, at the least total cost (paper 3.2.1).

    Args:
      class_logits: [S, B, N, A].
      segments_se: [S, B, N, 2], predicted (start, end) as share of the window.
      segments_norm: [B, M, 2], targets (start, end) as share of the window.
      labels: int [B, M].
      valid: bool [B, M]; False marks padding.
      config: see `matching_cost`.
      backend: "optax" or "scipy"; None takes `config.matcher`.
      mesh: see `assign`.

    Returns:
      int32 [S, B, M], index of the proposal given to each target. Padded targets hold distinct indices that no real
      target has.

    Raises:
      UserError: N < M (when traced).
    """
    num_proposals, num_targets = class_logits.shape[2], labels.shape[1]
    if num_proposals < num_targets:
        raise UserError(f"model.num_proposals ({num_proposals}) is less than data.max_targets ({num_targets}); every "
                        "target needs a proposal of its own: raise the first or lower the second.")
    if num_targets == 0:
        return jnp.zeros((*class_logits.shape[:2], 0), jnp.int32)
    cost = matching_cost(class_logits, segments_se, segments_norm, labels, valid, config)
    return assign(cost, backend or config.matcher, mesh)
