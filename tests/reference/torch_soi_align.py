"""SoI Align by torchvision.ops.roi_align's documented rules in one dimension, read with `grid_sample`.

`aligned=True` shifts by half a step; otherwise a segment is one step long at least, which is also what G-TAD's Align1D
does ("legacy"). `sampling_ratio` <= 0 takes ceil(length / bins) samples a bin. A sample before -1 or after T is 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sptad_jax.config import ModelConfig
from tests.reference.soi_align import choose_level


def roi_align(feature: Tensor, start: Tensor, end: Tensor, num_bins: int, aligned: bool, sampling_ratio: int) -> Tensor:
    """[T, D], bounds in steps -> [K, D], with gradient by the feature."""
    length = len(feature)
    extent = end - start if aligned else (end - start).clamp(min=1.0)
    start = start - 0.5 if aligned else start
    samples = sampling_ratio if sampling_ratio > 0 else max(1, math.ceil(extent.item() / num_bins))
    shares = (torch.arange(num_bins * samples, dtype=feature.dtype) + 0.5) / (num_bins * samples)
    positions = start + shares * extent
    grid_x = 2 * positions / max(length - 1, 1) - 1  # -1 and 1 are the centres of the first and the last step
    grid = torch.stack([grid_x, torch.zeros_like(grid_x)], dim=-1)
    read = F.grid_sample(
        feature.T[None, :, None, :], grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, :, 0].T
    inside = (positions >= -1) & (positions <= length)
    return torch.where(inside[:, None], read, 0.0).reshape(num_bins, samples, -1).mean(dim=1)


def read_segments(levels: list[Tensor], segments_se: Tensor, config: ModelConfig) -> Tensor:
    """Level choice, expansion by 1/eta on either side, and reading, one segment after the other: -> [B, N, K, D]."""
    result = []
    for b, n in torch.cartesian_prod(*(torch.arange(size) for size in segments_se.shape[:2])).tolist():
        start, end = segments_se[b, n]
        width = end - start
        feature = levels[choose_level(width.item(), len(levels), config.level_rule, config.eta)][b]
        bounds = ((start - width / config.eta) * len(feature), (end + width / config.eta) * len(feature))
        result.append(roi_align(
            feature, *bounds, config.soi_bins, config.soi_align == "aligned", config.sampling_ratio))
    return torch.stack(result).reshape(*segments_se.shape[:2], config.soi_bins, -1)
