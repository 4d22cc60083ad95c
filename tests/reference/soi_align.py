"""Equation 1 and 1-D SoI Align, one sample at a time, in float64."""

import math

import numpy as np


def choose_level(share: float, num_levels: int, rule: str, eta: float) -> int:
    """Equation 1 with a logarithm; share = t / T."""
    if rule == "expanded":
        share *= 1 + 2 / eta
    if share <= 0:
        return 0
    value = num_levels - 1 + math.log2(share)
    rounded = {"floor": math.floor, "ceil": math.ceil, "round": round, "expanded": round}[rule](value)
    return min(max(rounded, 0), num_levels - 1)


def sample_positions(length: int, start: float, end: float, num_bins: int, convention: str, ratio: int) -> np.ndarray:
    """Positions in steps, [K, R], of one segment (share of the window) on a level of `length` steps."""
    start, end = start * length, end * length
    extent = end - start
    if convention == "aligned":
        start -= 0.5
    else:
        extent = max(extent, 1.0)
    if ratio == 0:
        ratio = max(1, math.ceil(extent / num_bins))
    bin_size = extent / num_bins
    return np.array([[start + b * bin_size + (i + 0.5) * bin_size / ratio for i in range(ratio)]
                     for b in range(num_bins)])  # fmt: skip


def read_sample(feature: np.ndarray, position: float) -> np.ndarray:
    """Linear interpolation in a sequence [T, D]; 0 before -1 and after T, the edge step between there and the ends."""
    length = len(feature)
    if position < -1 or position > length:
        return np.zeros(feature.shape[1])
    if position <= 0:
        return feature[0]
    if position >= length - 1:
        return feature[length - 1]
    low = int(position)
    return feature[low] * (low + 1 - position) + feature[low + 1] * (position - low)


def soi_align(levels: list, segments_se: np.ndarray, level: np.ndarray, num_bins: int, convention: str, ratio: int):
    """[B, T_l, D] per level, [B, N, 2], [B, N] -> [B, N, K, D]."""
    batch, num = level.shape
    result = np.zeros((batch, num, num_bins, levels[0].shape[-1]))
    for b in range(batch):
        for n in range(num):
            feature = np.asarray(levels[level[b, n]][b], np.float64)
            positions = sample_positions(len(feature), *map(float, segments_se[b, n]), num_bins, convention, ratio)
            for k in range(num_bins):
                result[b, n, k] = np.mean([read_sample(feature, p) for p in positions[k]], axis=0)
    return result
