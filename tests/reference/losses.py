"""Slow, obvious losses: loops over stages, windows, proposals and classes in plain Python arithmetic."""

import math

from tests.reference.matching import giou_scalar, l1_scalar, tiou_scalar


def focal_scalar(logit, target, alpha, gamma):
    p = 1 / (1 + math.exp(-logit))
    if target:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


def bce_scalar(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p) if target else -math.log(1 - p)


def losses(predictions, batch, matches, config, num_groups=1):
    """The metrics of compute_losses, from given matches [S*G, B, M]."""
    class_logits, segments = predictions["class_logits"], predictions["segments_se"]
    leading, batch_size, num_proposals, num_classes = class_logits.shape
    num_positives = max(int(batch["valid"].sum()), 1)
    out = {"loss_class": 0.0, "loss_l1": 0.0, "loss_giou": 0.0, "loss_action": 0.0}
    for k in range(leading):
        stage = k // num_groups
        stage_weight = config.stage_weights[stage] if config.stage_weights else 1.0
        focal = l1 = giou = 0.0
        for b in range(batch_size):
            class_of = {}
            for m in range(batch["labels"].shape[1]):
                if batch["valid"][b, m]:
                    n = int(matches[k, b, m])
                    class_of[n] = int(batch["labels"][b, m])
                    pair = (segments[k, b, n].tolist(), batch["segments_norm"][b, m].tolist())
                    l1 += l1_scalar(*pair, config.l1_coordinates)
                    giou += 1 - (giou_scalar if config.iou == "giou" else tiou_scalar)(*pair)
            for n in range(num_proposals):
                for a in range(num_classes):
                    focal += focal_scalar(float(class_logits[k, b, n, a]), class_of.get(n) == a,
                                          config.focal_alpha, config.focal_gamma)
        parts = (config.class_weight * focal, config.l1_weight * l1, config.giou_weight * giou)
        parts = [stage_weight * part / num_positives for part in parts]
        for name, part in zip(("loss_class", "loss_l1", "loss_giou"), parts):
            out[name] += part
        out[f"loss_stage_{stage}"] = out.get(f"loss_stage_{stage}", 0.0) + sum(parts)
    if "clip_logits" in predictions:
        for b in range(batch_size):
            logits, labels = predictions["clip_logits"][b], batch["clip_labels"][b]
            terms = [bce_scalar(float(x), y > 0) for x, y in zip(logits, labels)]
            action = sum(terms) / (len(terms) if config.action_reduction == "mean" else 1)
            out["loss_action"] += config.action_weight * action / batch_size
    out["loss"] = out["loss_class"] + out["loss_l1"] + out["loss_giou"] + out["loss_action"]
    return out
