"""AR@AN: against figures of the official script, a literal loop, and numbers worked out by hand."""

import copy
import itertools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sptad_jax.errors import UserError
from sptad_jax.evaluation.files import load_detections, load_ground_truth
from sptad_jax.evaluation.proposals import TIOUS, average_recall
from tests.reference import analysis as reference
from tests.reference.analysis import to_files
from tests.reference.average_precision import overlap_over_union

_TIMES = st.tuples(st.integers(0, 12), st.integers(0, 8)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
_TRUTH = st.fixed_dictionaries({v: st.lists(st.tuples(st.just("a"), _TIMES), max_size=4) for v in "uvw"}).filter(
    lambda truth: any(truth.values())
)
_ROW = st.tuples(st.sampled_from("ab"), st.integers(0, 3).map(float), _TIMES)
_FOUND = st.dictionaries(st.sampled_from("uvwx"), st.lists(_ROW, max_size=9))


def test_equals_the_official_script_on_real_detections(shared):
    """24,074 real detections: figures of eval_proposal.py itself (82304fa, made to run on Python 3). Any other share
    of a list, rounding, order or area moves the fourth digit."""
    folder = shared / "golden" / "scnn_c3d"
    truth = load_ground_truth(folder / "ground_truth_210.json")
    result = average_recall(truth, load_detections(folder / "detections_unique.json.gz"), "test")
    assert result["auc"] == pytest.approx(0.2429639081848384, abs=1e-12)
    curve = dict(zip(result["average_number"], result["average_recall"]))
    expected = {1: 0.004107520386590154, 2: 0.013742071881606765, 10: 0.09115070975536092, 50: 0.27604953186348535,
                100: 0.3375113258834189}  # fmt: skip
    assert {an: curve[an] for an in expected} == pytest.approx(expected, abs=1e-12)
    assert result["recall"]["0.5"][9] == pytest.approx(0.23316218665055874, abs=1e-12)
    assert result["recall"]["0.95"][99] == pytest.approx(0.009362730292962852, abs=1e-12)
    assert (result["num_videos"], result["num_proposals"]) == (210, 24074)


def test_perfect_proposals_on_activitynet(shared):
    """The ground truth of ActivityNet as its own proposals: the curve is known in closed form. From AN 2 on every
    list is whole, and only instances of no length are missed; at AN 1 each video has its share of the lists."""
    found = json.loads((shared / "activitynet13" / "sample_detection_prediction.json").read_text())
    rows = found["results"]
    truth = {"database": {video: {"annotations": copy.deepcopy(annotated)} for video, annotated in rows.items()}}
    result = average_recall(truth, found)
    number = sum(map(len, rows.values()))
    empty = sum(row["segment"][0] == row["segment"][1] for annotated in rows.values() for row in annotated)
    limit = 1 - empty / number
    assert result["average_recall"][1:] == pytest.approx([limit] * 99, abs=1e-12)
    hits = 0.0
    for annotated in rows.values():
        shown = annotated[: int(len(annotated) * len(rows) / number)]
        for row in annotated:  # its own proposal, or that of a neighbour that overlaps by half
            best = max((overlap_over_union(row["segment"], other["segment"]) for other in shown), default=0.0)
            hits += (best >= TIOUS).mean()
    assert result["average_recall"][0] == pytest.approx(hits / number, abs=1e-12)
    assert result["auc"] == pytest.approx((0.5 * result["average_recall"][0] + 98.5 * limit) / 100, abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(_TRUTH, _FOUND, st.sampled_from([1, 3, 10, 100]))
@example({"u": [("a", (0.0, 1.0))]}, {}, 100)
@example({"u": [("a", (0.0, 1.0))], "v": [("a", (0.0, 1.0))]}, {"u": [("a", 1.0, (0.0, 1.0))] * 9}, 1)
def test_equals_the_literal_loop(truth, found, max_average):
    """Ties, lists shorter than the budget, videos without proposals, without instances or unknown, no length."""
    result = average_recall(*to_files(truth, found), max_average=max_average)
    wanted = reference.average_recall(truth, found, TIOUS.tolist(), max_average)
    assert result["average_recall"] == pytest.approx(wanted, abs=1e-12)
    assert np.mean(list(result["recall"].values()), axis=0) == pytest.approx(wanted, abs=1e-12)
    area = sum((a + b) / 2 for a, b in itertools.pairwise(wanted)) / 100
    assert result["auc"] == pytest.approx(area, abs=1e-12)


def test_by_hand():
    """Two videos with lists of 4 and 2. At AN 3 both are spent whole; at AN 1.5 the budgets are 2 and 1, so the long
    list spends more; taking AN proposals of every video instead, or matching one to one, gives other numbers."""
    truth = {"u": [("a", (0, 10)), ("b", (0, 10)), ("a", (30, 40))], "v": [("a", (0, 10))]}
    found = {
        "u": [("a", 0.9, (50, 60)), ("a", 0.8, (0, 10)), ("a", 0.7, (70, 80)), ("b", 0.6, (30, 40))],
        "v": [("a", 0.1, (1, 10)), ("a", 0.9, (50, 60))],
        "w": [("a", 1.0, (0, 10))] * 50,  # no ground truth: not counted
    }
    result = average_recall(*to_files(truth, found), max_average=3)
    assert result["average_number"][49] == pytest.approx(1.5) and result["num_proposals"] == 6
    # (1, 10) has tIoU 0.9 with (0, 10): nine of the ten thresholds
    assert result["average_recall"][99] == pytest.approx((3 + 0.9) / 4)
    assert result["average_recall"][49] == pytest.approx(2 / 4)  # of u the second reaches two instances at once
    assert result["average_recall"][23] == 0
    assert result["recall"]["0.9"][99] == 1 and result["recall"]["0.95"][99] == 0.75


def test_nothing_annotated():
    """A division by zero instead of a sentence."""
    with pytest.raises(UserError, match="nothing is annotated in subset 'all'"):
        average_recall(*to_files({"u": []}, {}))
