"""Slow, obvious greedy suppression with Python lists."""

import math


def overlap_over_union(a, b) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inside
    return inside / union if union > 0 else 0.0


def soft_nms(segments, scores, sigma: float, min_score: float) -> list[tuple[int, float]]:
    """(index, decayed score) in the order taken."""
    left = dict(enumerate(scores))
    taken = []
    while left:
        index = min(left, key=lambda i: (-left[i], i))
        score = left.pop(index)
        if score < min_score or score <= 0:
            break
        taken.append((index, score))
        for other in left:
            left[other] *= math.exp(-(overlap_over_union(segments[index], segments[other]) ** 2) / sigma)
    return taken


def hard_nms(segments, scores, max_tiou: float) -> list[int]:
    """Indices kept, best first: those that overlap none of the kept ones by more than max_tiou."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(overlap_over_union(segments[index], segments[k]) <= max_tiou for k in kept):
            kept.append(index)
    return kept
