"""Suppression against the literal loop, on lists long enough to be cut into stretches and compacted on the way."""

import numpy as np
import pytest

from sptad_jax.inference import nms
from tests.reference import soft_nms as reference


def draw(seed):
    """Segments in crowds and alone, some twice, and scores with ties: [600, 2], [600]."""
    rng = np.random.default_rng(seed)
    start = np.concatenate([rng.uniform(0, 60, 200), rng.uniform(0, 2000, 380)])
    segments_se = np.stack([start, start + rng.uniform(0.5, 20, len(start))], axis=-1)
    segments_se = np.concatenate([segments_se, segments_se[:20]])
    scores = rng.uniform(0.06, 1, len(segments_se))
    scores[::7] = np.round(scores[::7], 1)
    return segments_se, scores


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_soft_nms_is_the_loop(sigma, parity):
    """A detection that is taken before a better one that overlaps it, decayed twice or by its own duplicate's tie."""
    for seed in range(2):
        segments_se, scores = draw(seed)
        index, decayed = nms.soft_nms(segments_se, scores, sigma, 0.001)
        wanted = reference.soft_nms(segments_se, scores, sigma, 0.001)
        parity("decayed scores, best first", decayed, np.array([score for _, score in wanted]))
        order = np.argsort(index)
        wanted = sorted(wanted)
        assert index[order].tolist() == [i for i, _ in wanted]
        parity("decayed score of each detection", decayed[order], np.array([score for _, score in wanted]))


@pytest.mark.parametrize("max_tiou", [0.0, 0.3, 0.7])
def test_hard_nms_is_the_loop(max_tiou):
    """One that a suppressed detection suppresses in turn; the same set in the same order."""
    for seed in range(2):
        segments_se, scores = draw(seed)
        found = nms.hard_nms(segments_se, scores, max_tiou).tolist()
        assert found == reference.hard_nms(segments_se, scores, max_tiou)
