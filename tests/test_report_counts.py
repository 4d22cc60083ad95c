"""What the pages are made of: lanes, pairs of detections and ground truth, curves, number formats."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.report import matches, plots, style
from sptad_jax.report.records import Instance, detections_of, ground_truth_of
from sptad_jax.report.timeline import assign_lanes, timeline
from tests.reference.fake_run import dataset

SEGMENTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)).map(lambda p: (p[0], p[0] + p[1])), max_size=7)


def overlap(a, b) -> bool:
    return a[0] < b[1] and b[0] < a[1]


@given(SEGMENTS)
@settings(deadline=None, max_examples=80)
def test_lanes_are_free_of_overlaps_and_fewest(segments):
    """Two instances drawn over each other, or more lanes than any arrangement needs (tried out one by one)."""
    def legal(lanes):
        pairs = itertools.combinations(range(len(segments)), 2)
        return not any(lanes[i] == lanes[j] and overlap(segments[i], segments[j]) for i, j in pairs)

    lanes = assign_lanes(segments)
    used = len(set(lanes))
    assert legal(lanes) and set(lanes) == set(range(used))
    if used > 1:
        assert not any(map(legal, itertools.product(range(used - 1), repeat=len(segments))))


def test_overlapping_instances_lie_in_separate_lanes_of_the_drawing():
    """Lanes that are computed but not drawn: bars at one height, or bars outside the axis."""
    truths = [Instance("a", 0, 10), Instance("a", 5, 15), Instance("a", 12, 20)]
    svg = timeline(20, truths, [Instance("a", 1, 9, 0.9), Instance("b", 1, 9, 0.1)], ["a", "b"])
    place = r'<rect x="([\d.]+)" y="(\d+)" width="([\d.]+)"'
    bars = re.findall(place + r'[^>]*?(?:fill-opacity="([\d.]+)"[^>]*)?><title>(\w+)', svg)
    heights = [bar[1] for bar in bars if bar[4] == "ground"]
    assert len(bars) == 5 and heights[0] != heights[1] and heights[0] == heights[2]
    assert float(bars[0][0]) == 168 and float(bars[2][0]) + float(bars[2][2]) == pytest.approx(986, abs=0.2)
    high, low = (float(bar[3]) for bar in bars if bar[4] == "detection")
    assert high > low


def slow_curve(truths, found, threshold):
    """Precision and recall after each detection of one class by plain loops."""
    ranked = sorted(((d.score, v, d) for v, ds in found.items() for d in ds), key=lambda r: -r[0])
    taken, hits, points = set(), 0, []
    for rank, (_, video, d) in enumerate(ranked, 1):
        best = None
        for k, g in enumerate(truths.get(video, ())):
            inter = max(0.0, min(d.end_sec, g.end_sec) - max(d.start_sec, g.start_sec))
            value = inter / ((d.end_sec - d.start_sec) + (g.end_sec - g.start_sec) - inter)
            free = (video, k) not in taken and d.label == g.label
            if free and value >= threshold and (best is None or value > best[0]):
                best = (value, k)
        if best is not None:
            taken.add((video, best[1]))
            hits += 1
        points.append((hits / rank, hits / sum(map(len, truths.values()))))
    return np.array(points)


def instances(entries) -> list[Instance]:
    return [Instance(e["label"], *e["segment"], e.get("score", 1.0)) for e in entries]


def test_curves_equal_a_slow_count():
    """A detection paired with a claimed or foreign ground truth, or counted in the wrong order."""
    database, results = dataset(np.random.default_rng(3))
    truths = {v: instances(database[v]["annotations"]) for v in results}
    found = {v: sorted(instances(r), key=lambda d: -d.score) for v, r in results.items()}
    expected = slow_curve(truths, found, 0.5)
    curve = matches.curves(truths, found)[""]
    np.testing.assert_allclose(np.stack([curve.precision, curve.recall], 1), expected)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in expected]
    assert matches.operating_score(curve) == curve.score[int(np.argmax(f1))]
    kept = matches.above(found, matches.operating_score(curve))
    assert sum(map(len, kept.values())) == int(np.argmax(f1)) + 1


def test_confusion_by_hand():
    """Rows and columns swapped; a miss, a false alarm or a second detection of one instance counted as a hit."""
    truths = {"v": [Instance("a", 0, 10), Instance("b", 20, 30), Instance("b", 50, 60)]}
    kept = {"v": [Instance("a", 0, 10, 0.9), Instance("a", 20, 29, 0.8), Instance("a", 1, 10, 0.7)]}
    assert matches.confusion(truths, kept, ["a", "b"]).tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert matches.best_tious(truths, kept).tolist() == [1.0, 0.0, 0.9]
    assert matches.video_scores(truths, kept) == {"v": pytest.approx(1 / 3)}


def test_smoothing_and_thinning():
    """A smoothed curve that is pulled to zero at its start, or thinning that moves the mean."""
    assert plots.smooth(np.full(50, 4.0), 10) == pytest.approx(4.0)
    x, y = np.arange(1000.0), np.random.default_rng(0).normal(size=1000)
    thin_x, thin_y = plots.thin(x, y, 100)
    np.testing.assert_allclose(thin_y, y.reshape(100, 10).mean(1))
    assert len(plots.thin(x, y, 300)[0]) <= 300 and thin_x[0] == 4.5


def test_number_formats():
    """Units and gaps: minutes rounded to 60 s, NaN shown as a number."""
    assert [style.duration(s) for s in (9.5, 95, 3599.7, 3725)] == ["9.5 s", "1 min 35 s", "1 h 00 min", "1 h 02 min"]
    assert [style.percent(v) for v in (0.4567, 0, float("nan"), None, "x")] == ["45.7", "0.0", "–", "–", "–"]
    assert [style.count(v) for v in (1234567, 3.0, None, True)] == ["1,234,567", "3", "–", "–"]


def test_entries_are_read_leniently():
    """A number written as text refused; a reversed, endless or unscored segment drawn; another subset mixed in."""
    entry = {"subset": "test", "duration": "40", "annotations": [
        {"label": "a", "segment": ["3.5", "7"]}, {"label": "a", "segment": [9, 8]}, {"label": "a", "segment": [1]}]}
    database = {"v": entry, "w": {**entry, "subset": "validation"}}
    assert ground_truth_of(database, "test") == ({"v": [Instance("a", 3.5, 7.0)]}, {"v": 40.0})
    assert ground_truth_of({"v": entry["annotations"]}) == ({"v": [Instance("a", 3.5, 7.0)]}, {})
    scores = [0.2, 0.9, None, float("nan"), 10**400, True]
    found = detections_of({"v": [{"label": "a", "segment": [0, 1], "score": s} for s in scores]})
    assert [d.score for d in found["v"]] == [0.9, 0.2]
