"""Geometry of temporal segments: the ground floor that every other room stands on.

A segment is a pair on the last axis: `_se` is (start, end), `_cw` is (centre, width). The unit is whatever the
caller uses (seconds, frames, or the share of a window); every function here is free of units.
All functions accept NumPy arrays and JAX arrays (traced ones too) and answer in the same kind.
"""

from typing import Any

Array = Any  # np.ndarray or jax.Array, of any floating dtype


def cw_to_se(segments_cw: Array) -> Array:
    """(centre, width) -> (start, end). [..., 2] -> [..., 2]."""
    xp = segments_cw.__array_namespace__()
    centre, width = segments_cw[..., 0], segments_cw[..., 1]
    return xp.stack([centre - 0.5 * width, centre + 0.5 * width], axis=-1)


def se_to_cw(segments_se: Array) -> Array:
    """(start, end) -> (centre, width). [..., 2] -> [..., 2]."""
    xp = segments_se.__array_namespace__()
    start, end = segments_se[..., 0], segments_se[..., 1]
    return xp.stack([0.5 * (start + end), end - start], axis=-1)


def expand(segments_se: Array, eta: float) -> Array:
    """Lengthens a segment by 1/eta of its length on either side (paper 3.1.3). [..., 2] -> [..., 2]."""
    xp = segments_se.__array_namespace__()
    start, end = segments_se[..., 0], segments_se[..., 1]
    margin = (end - start) / eta
    return xp.stack([start - margin, end + margin], axis=-1)


def _overlap(a_se: Array, b_se: Array) -> Array:
    xp = a_se.__array_namespace__()
    return xp.clip(
        xp.minimum(a_se[..., 1], b_se[..., 1]) - xp.maximum(a_se[..., 0], b_se[..., 0]), 0.0, None
    )


def _divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator where the denominator is positive, else 0, with finite gradients."""
    xp = numerator.__array_namespace__()
    positive = denominator > 0
    return xp.where(positive, numerator / xp.where(positive, denominator, 1.0), 0.0)


def tiou(a_se: Array, b_se: Array) -> Array:
    """Temporal intersection over union, shapes broadcast: [..., 2], [..., 2] -> [...]. 0 where the union is empty."""
    overlap = _overlap(a_se, b_se)
    union = (a_se[..., 1] - a_se[..., 0]) + (b_se[..., 1] - b_se[..., 0]) - overlap
    return _divide(overlap, union)


def giou(a_se: Array, b_se: Array) -> Array:
    """Generalised tIoU (paper eq. 3; Rezatofighi et al. 2019): tIoU - (hull - union) / hull, in [-1, 1].

    Shapes broadcast: [..., 2], [..., 2] -> [...]. Ends must not precede starts.
    """
    xp = a_se.__array_namespace__()
    overlap = _overlap(a_se, b_se)
    union = (a_se[..., 1] - a_se[..., 0]) + (b_se[..., 1] - b_se[..., 0]) - overlap
    hull = xp.maximum(a_se[..., 1], b_se[..., 1]) - xp.minimum(a_se[..., 0], b_se[..., 0])
    return _divide(overlap, union) - _divide(hull - union, hull)


def tioa(a_se: Array, b_se: Array) -> Array:
    """Temporal intersection over the area of `a` (paper footnote 1): the share of `a` that lies in `b`."""
    return _divide(_overlap(a_se, b_se), a_se[..., 1] - a_se[..., 0])
