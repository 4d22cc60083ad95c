"""The losses from torch's own, with gradients by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sptad_jax.config import LossConfig


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Cross-entropy with logits and the textbook modulation, element by element."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = torch.sigmoid(logits)
    p_t = probability * targets + (1 - probability) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - p_t) ** gamma * cross_entropy


def overlap(a_se: Tensor, b_se: Tensor, kind: str) -> Tensor:
    """tIoU, or GIoU = tIoU - (hull - union) / hull, of rows of two [n, 2]."""
    inside = (torch.minimum(a_se[:, 1], b_se[:, 1]) - torch.maximum(a_se[:, 0], b_se[:, 0])).clamp(min=0)
    union = a_se.diff(dim=1)[:, 0] + b_se.diff(dim=1)[:, 0] - inside
    hull = torch.maximum(a_se[:, 1], b_se[:, 1]) - torch.minimum(a_se[:, 0], b_se[:, 0])
    return inside / union - ((hull - union) / hull if kind == "giou" else 0)


def coordinates(segments_se: Tensor, kind: str) -> Tensor:
    """(start, end), or (centre, width)."""
    if kind == "start_end":
        return segments_se
    return torch.stack([segments_se.mean(dim=1), segments_se[:, 1] - segments_se[:, 0]], dim=1)


def losses(predictions: dict[str, Tensor], batch: dict, matches, config: LossConfig) -> dict[str, Tensor]:
    """The metrics of compute_losses for one detector and given matches [S, B, M]; `batch` holds NumPy arrays."""
    logits, segments_se = predictions["class_logits"], predictions["segments_se"]
    stages = len(logits)
    segments_norm = torch.tensor(batch["segments_norm"])
    num_positives = max(int(batch["valid"].sum()), 1)
    parts = {"loss_class": [], "loss_l1": [], "loss_giou": []}
    for k in range(stages):
        targets = torch.zeros_like(logits[k])
        pairs = [(b, int(matches[k, b, m]), m) for b, m in zip(*batch["valid"].nonzero())]
        for b, n, m in pairs:
            targets[b, n, batch["labels"][b, m]] = 1
        predicted = torch.stack([segments_se[k, b, n] for b, n, _ in pairs])
        wanted = torch.stack([segments_norm[b, m] for b, _, m in pairs])
        scale = (config.stage_weights[k] if config.stage_weights else 1.0) / num_positives
        kind = config.l1_coordinates
        l1 = F.l1_loss(coordinates(predicted, kind), coordinates(wanted, kind), reduction="sum")
        focal = focal_loss(logits[k], targets, config.focal_alpha, config.focal_gamma).sum()
        parts["loss_class"].append(scale * config.class_weight * focal)
        parts["loss_l1"].append(scale * config.l1_weight * l1)
        parts["loss_giou"].append(scale * config.giou_weight * (1 - overlap(predicted, wanted, config.iou)).sum())
    out = {name: torch.stack(values).sum() for name, values in parts.items()}
    out |= {f"loss_stage_{k}": torch.stack([values[k] for values in parts.values()]).sum() for k in range(stages)}
    action = F.binary_cross_entropy_with_logits(
        predictions["clip_logits"], torch.tensor(batch["clip_labels"]), reduction="none")
    action = (action.mean(dim=1) if config.action_reduction == "mean" else action.sum(dim=1)).mean()
    out["loss_action"] = config.action_weight * action
    out["loss"] = out["loss_class"] + out["loss_l1"] + out["loss_giou"] + out["loss_action"]
    return out
