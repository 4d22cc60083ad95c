"""Set prediction loss on every stage and the clip-level action loss (paper 3.2.1, equations 2 and 3).

Where the paper is silent (weights, focal parameters, normaliser), the choices are those of Sparse R-CNN
(projects/SparseRCNN/sparsercnn/loss.py:93-175) and every one is an option of `LossConfig`. All of it is float32
(float64 where the predictions are).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sptad_jax.config import LossConfig
from sptad_jax.errors import UserError
from sptad_jax.precision import wide
from sptad_jax.training import matching

Array = Any


def sigmoid_focal_loss(logits: Array, targets: Array, alpha: float, gamma: float) -> Array:
    """Focal loss of independent binary decisions, element by element: -alpha_t (1 - p_t)^gamma log p_t.

    [...], targets in {0, 1} [...] -> [...] float32. Lin et al. 2017, the reference [23] of the paper.
    """
    logits, targets = logits.astype(wide(logits)), targets.astype(wide(logits))
    signed = logits * (2 * targets - 1)  # positive where the decision is right
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    # (1 - p_t)^gamma through its logarithm: finite gradients for any gamma, also where p_t rounds to 1.
    return -weight * jnp.exp(gamma * jax.nn.log_sigmoid(-signed)) * jax.nn.log_sigmoid(signed)


def count_positives(valid: Array) -> Array:
    """N_pos of equation 3: targets of the whole batch, at least 1. bool [...] -> float32 scalar.

    Under jit on a batch that is sharded over devices, the count is that of the global batch.
    """
    return jnp.maximum(valid.astype(jnp.float32).sum(), 1.0)


def class_targets(matches: Array, labels: Array, valid: Array, num_proposals: int, num_classes: int) -> Array:
    """One-hot class of each matched proposal; background proposals are all zeros.

    matches int [S, B, M], labels int [B, M], valid bool [B, M] -> [S, B, N, A] float32.
    """
    proposal = jax.nn.one_hot(matches, num_proposals, dtype=jnp.float32)  # [S,B,M,N]
    category = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) * valid[..., None]  # [B,M,A]
    return jnp.einsum("sbmn,bma->sbna", proposal, category)


def set_losses(class_logits: Array, segments_se: Array, segments_norm: Array, labels: Array, valid: Array,
               matches: Array, config: LossConfig) -> tuple[Array, Array, Array]:
    """The three sums of the set prediction loss, per stage, before weights and division by N_pos.

    Args:
      class_logits: [S, B, N, A].
      segments_se: [S, B, N, 2], predicted (start, end) as share of the window; any values.
      segments_norm: [B, M, 2], targets (start, end) as share of the window.
      labels: int [B, M].
      valid: bool [B, M].
      matches: int [S, B, M], see `matching.match`.
      config: focal parameters, L1 coordinates, kind of overlap.

    Returns:
      (focal [S], L1 [S], 1 - GIoU [S]), float32.
    """
    num_proposals, num_classes = class_logits.shape[2:]
    targets = class_targets(matches, labels, valid, num_proposals, num_classes)
    focal = sigmoid_focal_loss(class_logits, targets, config.focal_alpha, config.focal_gamma).sum((1, 2, 3))
    predicted = jnp.take_along_axis(segments_se.astype(wide(segments_se)), matches[..., None], axis=2)  # [S,B,M,2]
    target = jnp.broadcast_to(segments_norm.astype(predicted.dtype), predicted.shape)
    # Padding is taken out of the input, not just of the sum: 0 times a non-finite gradient would still be NaN.
    predicted = jnp.where(valid[..., None], predicted, target)
    kind = config.l1_coordinates
    difference = jnp.abs(matching.coordinates(predicted, kind) - matching.coordinates(target, kind)).sum(-1)
    distance = 1.0 - matching.overlap(predicted, target, config.iou)
    l1, giou = (jnp.where(valid, term, 0.0).sum((1, 2)) for term in (difference, distance))
    return focal, l1, giou


def action_loss(clip_logits: Array, clip_labels: Array, reduction: str) -> Array:
    """Binary cross-entropy of the clip's actions (paper 3.1.4): mean over the batch, "mean" or "sum" over classes.

    [B, A], multi-hot [B, A] -> float32 scalar.
    """
    logits, labels = (x.astype(wide(clip_logits)) for x in (clip_logits, clip_labels))
    losses = -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
    over_classes = losses.mean(-1) if reduction == "mean" else losses.sum(-1)
    return over_classes.mean()


def compute_losses(predictions: dict[str, Array], batch: dict[str, Array], config: LossConfig,
                   matches: Array | None = None, mesh: Mesh | None = None, num_groups: int = 1,
                   num_positives: Array | None = None) -> tuple[Array, dict[str, Array]]:
    """The training loss of equation 2 and its parts.

    Args:
      predictions: "class_logits" [S*G, B, N, A], "segments_se" [S*G, B, N, 2] (share of the window) and, unless there
        is no classification head, "clip_logits" [B, A]. G detectors share a batch under late fusion, else G = 1;
        the leading axis is stage-major: stage k of detector g at k * G + g.
      batch: "segments_norm" [B, M, 2], "labels" int [B, M], "valid" bool [B, M], "clip_labels" [B, A] multi-hot.
      config: weights and options.
      matches: int32 [S*G, B, M]; None computes them with `matching.match`.
      mesh: devices over which B is sharded; only the matching needs to know.
      num_groups: G.
      num_positives: normaliser N_pos; None counts the targets of `batch`, min 1. To average the gradients of several
        micro-batches, give `count_positives` of the whole batch divided by the number of micro-batches: the average
        is then the gradient of the whole batch.

    Returns:
      The total, and float32 scalars that add up to it: loss = loss_class + loss_l1 + loss_giou + loss_action =
      sum of loss_stage_k + loss_action, each with its weights and summed over stages and detectors.

    Raises:
      UserError: `config.stage_weights` has another length than S; too few proposals (see `matching.match`).
    """
    class_logits, segments_se = predictions["class_logits"], predictions["segments_se"]
    num_stages = class_logits.shape[0] // num_groups
    if config.stage_weights and len(config.stage_weights) != num_stages:
        raise UserError(f"config: loss.stage_weights has {len(config.stage_weights)} entries for {num_stages} stages; "
                        "give one weight per stage, or none.")
    targets = (batch["segments_norm"], batch["labels"], batch["valid"])
    if matches is None:
        with jax.named_scope("matching"):
            matches = matching.match(class_logits, segments_se, *targets, config, mesh=mesh)
    if num_positives is None:
        num_positives = count_positives(batch["valid"])
    stage_weights = jnp.asarray(config.stage_weights or (1.0,) * num_stages, jnp.float32)
    scale = jnp.repeat(stage_weights, num_groups) / num_positives  # [S*G]
    sums = set_losses(class_logits, segments_se, *targets, matches, config)
    weights = (config.class_weight, config.l1_weight, config.giou_weight)
    terms = jnp.stack([weight * scale * term for weight, term in zip(weights, sums)])  # [3, S*G]
    action = jnp.zeros((), jnp.float32)
    if "clip_logits" in predictions:
        action = config.action_weight * action_loss(predictions["clip_logits"], batch["clip_labels"],
                                                    config.action_reduction)
    total = terms.sum() + action
    stages = terms.reshape(3, num_stages, num_groups).sum((0, 2))
    metrics = {"loss": total, "loss_class": terms[0].sum(), "loss_l1": terms[1].sum(), "loss_giou": terms[2].sum(),
               "loss_action": action, **{f"loss_stage_{k}": stages[k] for k in range(num_stages)}}
    return total, metrics
