"""Suppression of redundant detections (paper 3.2.2): soft-NMS and plain NMS, exact and in time linear in the video.

A detection can only be suppressed by one that overlaps it. So whatever is the best among all that it overlaps may be
taken at once, wherever else better ones stand: the answer is that of taking one after the other in descending score.
"""

from collections.abc import Callable

import numpy as np

Decay = Callable[[np.ndarray], np.ndarray]

_SMALL_GROUP = 200  # up to here a group costs less whole than cut into stretches (benchmarks/evaluation.py)


def soft_nms(
    segments_se: np.ndarray, scores: np.ndarray, sigma: float, min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft-NMS (Bodla et al. 2017): the best one decays the others by exp(-tIoU^2 / sigma), and so on.

    `segments_se` is [n, 2] and `scores` [n]. Stops when no score reaches `min_score` (or is positive); of equal scores
    the first is taken. Returns the indices kept, in the order taken, and their decayed scores: [k], [k], descending.
    """
    decayed = greedy_nms(segments_se[None], scores[None], gaussian_decay(sigma), min_score)[0]
    order = np.argsort(-decayed, kind="stable")[: np.count_nonzero(decayed > 0)]
    return order, decayed[order]


def hard_nms(segments_se: np.ndarray, scores: np.ndarray, max_tiou: float) -> np.ndarray:
    """Greedy NMS: indices of the segments kept, in descending score; a tIoU of just `max_tiou` is tolerated.

    `segments_se` is [n, 2], `scores` [n] positive; of equal scores the first is taken.
    """
    kept = greedy_nms(segments_se[None], scores[None], box_decay(max_tiou), 0.0)[0]
    return np.argsort(-kept, kind="stable")[: np.count_nonzero(kept > 0)]


def gaussian_decay(sigma: float) -> Decay:
    """tIoU -> factor exp(-tIoU^2 / sigma) of Gaussian soft-NMS."""
    return lambda tiou: np.exp(tiou * tiou * (-1.0 / sigma))


def box_decay(max_tiou: float) -> Decay:
    """tIoU -> 0 above `max_tiou`, else 1: plain NMS."""
    return lambda tiou: (tiou <= max_tiou).astype(np.float64)


def greedy_nms(segments_se: np.ndarray, scores: np.ndarray, decay: Decay, min_score: float) -> np.ndarray:
    """Suppresses within G independent groups at once.

    Args:
      segments_se: [G, n, 2] (start, end).
      scores: [G, n]; 0 is padding.
      decay: maps tIoU to the factor by which the better of two multiplies the other's score.
      min_score: what falls below it is dropped.

    Returns: float64 [G, n], scores at the time each was taken; 0 for what was never taken. Of equal scores the first is
      taken first. Each turn takes the best of every stretch of time that is better than its two neighbours'.
    """
    result = np.zeros(scores.shape)
    group, column = np.nonzero((scores > 0) & (scores >= min_score))
    if not len(group):
        return result
    order, row, left, right = _cut_into_stretches(segments_se[group, column], group)
    group, column = group[order], column[order]  # by row, then by column
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    # One row more than there are stretches: the neighbour of the first and the last, always empty.
    table = np.zeros((3, len(left) + 1, int(slot.max()) + 1))  # start, end, score
    table[:2, row, slot] = segments_se[group, column].T
    table[2, row, slot] = scores[group, column]
    names = np.full(table.shape[1:], result.size)  # where in `result` a candidate stands
    names[row, slot] = group * scores.shape[1] + column

    best, name = table[2].max(axis=1), np.full(len(left) + 1, result.size)
    name[:-1] = names[np.arange(len(left)), table[2, :-1].argmax(axis=1)]
    turn = 0
    while len(rows := np.flatnonzero(best)):
        value, first = best[rows], name[rows]
        wins = np.ones(len(rows), bool)
        for other in (left[rows], right[rows]):
            wins &= (value > best[other]) | ((value == best[other]) & (first < name[other]))
        taken = rows[wins]
        where = table[2, taken].argmax(axis=1)
        result.flat[first[wins]] = value[wins]
        chosen = table[:2, taken, where]
        table[2, taken, where] = 0.0
        touched = [taken]
        _decay_rows(table, taken, chosen, decay)
        for neighbours in (left[taken], right[taken]):  # each list names a row once, both together may name it twice
            present = neighbours < len(left)
            _decay_rows(table, neighbours[present], chosen[:, present], decay)
            touched.append(neighbours[present])
        changed = np.concatenate(touched)
        where = table[2, changed].argmax(axis=1)
        top = table[2, changed, where]
        best[changed], name[changed] = np.where(top >= min_score, top, 0.0), names[changed, where]
        turn += 1
        if turn % 16 == 0:
            table, names = _drop_finished(table, names, min_score)
    return result


def _cut_into_stretches(segments_se: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cuts each large group's time into stretches as long as its longest segment, so that only neighbours can overlap.

    [n, 2], [n] ascending -> order [n] that sorts by stretch and keeps the order within; its row [n] for each; and
    for each of R rows the row before and after it in time, or R where there is none.
    """
    first = np.flatnonzero(np.diff(group, prepend=-1))
    counts = np.diff(first, append=len(group))
    origin = np.minimum.reduceat(segments_se[:, 0], first)
    span = np.maximum.reduceat(segments_se[:, 0], first) - origin
    length = np.maximum.reduceat(segments_se[:, 1] - segments_se[:, 0], first) * (1 + 1e-9)
    length = np.maximum(length, 1e-6 * span)  # a million stretches are enough
    length[counts <= _SMALL_GROUP] = 0.0
    length, origin = np.repeat(length, counts), np.repeat(origin, counts)
    place = np.floor((segments_se[:, 0] - origin) / np.where(length > 0, length, np.inf)).astype(np.int64)
    key = group * (int(place.max()) + 2) + place  # a gap between groups: the last of one is no neighbour of the next
    order = np.argsort(key, kind="stable")
    keys, row = np.unique(key[order], return_inverse=True)
    rows = np.arange(len(keys))
    adjacent = np.diff(keys) == 1
    left, right = np.full(len(keys), len(keys)), np.full(len(keys), len(keys))
    left[1:][adjacent], right[:-1][adjacent] = rows[:-1][adjacent], rows[1:][adjacent]
    return order, row, left, right


def _decay_rows(table: np.ndarray, rows: np.ndarray, chosen: np.ndarray, decay: Decay) -> None:
    """Decays the scores of `rows` in place, each by one chosen segment. `chosen` is [2, len(rows)]."""
    (start, end), (best_start, best_end) = table[:2, rows], chosen[..., None]
    overlap = np.maximum(np.minimum(end, best_end) - np.maximum(start, best_start), 0.0)
    union = (end - start) + (best_end - best_start) - overlap
    table[2, rows] *= decay(overlap / np.maximum(union, np.finfo(np.float64).tiny))


def _drop_finished(table: np.ndarray, names: np.ndarray, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Narrows the table where at least half of its width is candidates that are done: later turns are cheaper."""
    alive = (table[2] > 0) & (table[2] >= min_score)
    width = max(1, int(alive.sum(axis=1).max()))
    if 2 * width > table.shape[2]:
        return table, names
    front = np.argsort(~alive, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(table, front[None], 2), np.take_along_axis(names, front, 1)
