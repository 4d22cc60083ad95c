"""Slow, obvious matching: plain Python arithmetic and a search over all assignments."""

import itertools
import math

import numpy as np


def tiou_scalar(a, b):
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - overlap
    return overlap / union if union > 0 else 0.0


def giou_scalar(a, b):
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - overlap
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return (overlap / union if union > 0 else 0.0) - ((hull - union) / hull if hull > 0 else 0.0)


def l1_scalar(a, b, coordinates):
    if coordinates == "centre_width":
        a = ((a[0] + a[1]) / 2, a[1] - a[0])
        b = ((b[0] + b[1]) / 2, b[1] - b[0])
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def cost_scalar(logits, label, predicted, target, config):
    """Cost of one proposal (logits [A], segment) for one target."""
    p = 1 / (1 + math.exp(-logits[label]))
    positive = config.focal_alpha * (1 - p) ** config.focal_gamma * -math.log(p + 1e-8)
    negative = (1 - config.focal_alpha) * p**config.focal_gamma * -math.log(1 - p + 1e-8)
    overlap = (giou_scalar if config.iou == "giou" else tiou_scalar)(predicted, target)
    return (config.class_cost * (positive - negative) + config.l1_cost * l1_scalar(predicted, target,
            config.l1_coordinates) - config.giou_cost * overlap)


def cost_matrix(logits, predicted, targets, labels, config):
    """[N, A], [N, 2], [M, 2], [M] of one window -> [N, M]."""
    return np.array([[cost_scalar(logits[n], labels[m], predicted[n], targets[m], config)
                      for m in range(len(targets))] for n in range(len(predicted))]).reshape(len(predicted), -1)


def cheapest(cost):
    """Least total cost over all ways of giving the columns of [N, M] distinct rows -> (cost, the rows)."""
    num_rows, num_columns = cost.shape
    return min((sum(cost[row, column] for column, row in enumerate(rows)), rows)
               for rows in itertools.permutations(range(num_rows), num_columns))
