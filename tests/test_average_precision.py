"""mAP: against the stored output of the official script, a literal loop, and numbers worked out by hand."""

import copy
import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sptad_jax.errors import UserError
from sptad_jax.evaluation import average_precision as ap
from sptad_jax.evaluation import files
from sptad_jax.evaluation.proposals import average_recall
from tests.reference import average_precision as reference

TIOUS = [0.3, 0.5, 0.7]


def _truth(rows, subset="test"):
    """rows: video -> [(label, (start, end))]."""
    return {
        "database": {
            video: {"subset": subset, "annotations": [{"label": name, "segment": list(s)} for name, s in entries]}
            for video, entries in rows.items()
        }
    }


def _found(rows):
    """rows: video -> [(label, score, (start, end))]."""
    return {
        "results": {
            video: [{"label": name, "score": score, "segment": list(s)} for name, score, s in entries]
            for video, entries in rows.items()
        }
    }


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "scnn_c3d"
    expected = json.loads((folder / "expected.json").read_text())["activitynet_protocol"]["map"]
    truth = files.load_ground_truth(folder / "ground_truth_210.json")
    return truth, files.load_detections(folder / "detections_unique.json.gz"), expected


@pytest.mark.parametrize("official_order", [False, True])
def test_equals_the_official_script_on_real_thumos14_detections(golden, official_order):
    """24,074 detections of a published detector: any deviation from the protocol moves the fourth digit."""
    truth, found, expected = golden
    results = ap.evaluate(truth, found, [float(t) for t in expected], "test", official_order=official_order)
    assert results["map"] == pytest.approx(expected, abs=1e-7)
    assert (results["num_videos"], results["num_ground_truth"], results["num_detections"]) == (210, 3311, 24074)
    assert len(results["per_class"]) == 20


def test_chunks_do_not_change_the_result(golden, monkeypatch):
    """A detection lost or paired twice where one chunk of detections ends and the next begins."""
    truth, found, _ = golden
    whole = ap.evaluate(truth, found, TIOUS, "test")
    monkeypatch.setattr(ap, "_CHUNK", 997)
    assert ap.evaluate(truth, found, TIOUS, "test") == whole


_TIMES = st.tuples(st.integers(0, 12), st.integers(0, 8)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
_VIDEOS, _LABELS = st.sampled_from(["v1", "v2", "v3"]), st.sampled_from(["a", "b"])
_GT = st.lists(st.tuples(_VIDEOS, _LABELS, _TIMES), min_size=1, max_size=12)
_DET = st.lists(st.tuples(_VIDEOS, _LABELS, st.integers(0, 5).map(float), _TIMES), max_size=20)


def _group(rows):
    table = {}
    for video, *rest in rows:
        table.setdefault(video, []).append(tuple(rest))
    return table


@settings(deadline=None, max_examples=150)
@given(_GT, _DET)
@example(
    [("v1", "a", (0.0, 2.0)), ("v1", "a", (1.0, 3.0))],
    [("v1", "a", 1.0, (1.0, 2.0)), ("v1", "a", 0.5, (0.0, 1.0))],
)
@example([("v1", "a", (4.0, 4.0))], [("v1", "a", 1.0, (4.0, 4.0))])
def test_equals_the_literal_loop(gt_rows, det_rows):
    """Ties of scores and of tIoUs, empty videos, zero lengths, unknown videos and labels, in any mixture."""
    truth, found = _group(gt_rows), _group(det_rows)
    results = ap.evaluate(_truth(truth), _found(found), TIOUS)
    wanted = reference.mean_average_precision(truth, found, TIOUS)
    assert list(results["map"].values()) == pytest.approx(wanted, abs=1e-12)
    for label, row in results["per_class"].items():
        kept = {video: rows for video, rows in found.items() if video in truth}
        one = [reference.class_ap(truth, kept, label, t) for t in TIOUS]
        assert [row["0.3"], row["0.5"], row["0.7"]] == pytest.approx(one, abs=1e-12)
        assert row["average"] == pytest.approx(sum(one) / 3, abs=1e-12)


def test_interpolated_area_of_a_published_example():
    """TP, FP, TP with two instances: .5 * 1 + .5 * 2/3; eleven-point or trapezoid rules give other numbers."""
    assert ap.average_precision(np.array([[True], [False], [True]]), 2) == pytest.approx([5 / 6])
    truth = _truth({"v": [("a", (0, 10)), ("a", (20, 30))]})
    found = _found({"v": [("a", 0.9, (0, 10)), ("a", 0.8, (50, 60)), ("a", 0.7, (20, 30))]})
    assert ap.evaluate(truth, found, [0.5])["map"] == pytest.approx({"0.5": 5 / 6})


def test_detection_takes_the_next_free_ground_truth():
    """A second detection must fall back on its second best ground truth: COCO and the MATLAB protocol differ here."""
    truth = _truth({"v": [("a", (0, 10)), ("a", (2, 12))]})
    found = _found({"v": [("a", 0.9, (0, 10)), ("a", 0.8, (0.5, 10.5))]})
    assert ap.evaluate(truth, found, [0.5])["map"]["0.5"] == 1.0


def test_thresholds_lock_separately():
    """A ground truth taken at tIoU 0.3 must still be free at 0.7 for a better but less confident detection."""
    truth = _truth({"v": [("a", (0, 10))]})
    found = _found({"v": [("a", 0.9, (0, 5)), ("a", 0.8, (0, 10))]})
    assert ap.evaluate(truth, found, [0.3, 0.5, 0.7])["map"] == pytest.approx({"0.3": 1.0, "0.5": 1.0, "0.7": 0.5})


def test_missing_class_counts_as_zero_and_strangers_are_counted():
    """The mean runs over all classes of the ground truth; unknown videos and labels are dropped, not errors."""
    truth = _truth({"v": [("a", (0, 1)), ("b", (2, 3))]})
    truth["database"]["w"] = {"subset": "train", "annotations": [{"label": "c", "segment": [0, 1]}]}
    stranger = [("a", 1.0, (0, 1))]
    found = _found({"v": [("a", 0.5, (0, 1)), ("z", 0.9, (0, 1))], "w": stranger, "x": stranger})
    results = ap.evaluate(truth, found, [0.5], "test")
    assert results == {
        "protocol": "activitynet", "subset": "test", "num_videos": 1, "num_ground_truth": 2, "num_detections": 1,
        "num_ignored_detections": 3, "map": {"0.5": 0.5}, "average_map": 0.5,
        "per_class": {"a": {"0.5": 1.0, "average": 1.0}, "b": {"0.5": 0.0, "average": 0.0}},
    }  # fmt: skip
    assert json.loads(json.dumps(results)) == results
    assert ap.evaluate(truth, found, [0.5], "test", classes=["a"])["average_map"] == 1.0
    assert ap.evaluate(truth, {"results": {}}, [0.5], "test")["average_map"] == 0.0
    assert ap.evaluate(truth, found, [0.5])["num_videos"] == 2


def test_ambiguous_segments_are_no_class(golden):
    """THUMOS14's Ambiguous taken for a class, with an AP of 0, or for instances that a proposal must recall."""
    truth, found, _ = golden
    marked = copy.deepcopy(truth)
    for entry in marked["database"].values():
        entry["annotations"].insert(0, {"label": "Ambiguous", "segment": [0, 1]})
        entry["ambiguous"] = [[2.0, 3.5]]
    assert ap.evaluate(marked, found, TIOUS, "test") == ap.evaluate(truth, found, TIOUS, "test")
    assert average_recall(marked, found, "test") == average_recall(truth, found, "test")


def test_does_not_depend_on_order_scale_or_units(golden):
    """Any order of videos and rows, any rising map of scores, and any unit of time gives the same mAP."""
    truth, found, _ = golden
    before = ap.evaluate(truth, found, TIOUS, "test")["map"]
    shuffled = copy.deepcopy(found)
    names = list(shuffled["results"])
    random.Random(0).shuffle(names)
    shuffled["results"] = {name: shuffled["results"][name][::-1] for name in names}
    for rows in shuffled["results"].values():
        for row in rows:
            row["score"] = np.exp(row["score"]).item() - 3
            row["segment"] = [4 * float(t) for t in row["segment"]]
    scaled = copy.deepcopy(truth)
    for entry in scaled["database"].values():
        for row in entry["annotations"]:
            row["segment"] = [4 * float(t) for t in row["segment"]]
    assert ap.evaluate(scaled, shuffled, TIOUS, "test")["map"] == pytest.approx(before, abs=1e-12)


def test_ties_keep_file_order_unless_official():
    """Equal scores: stable by default; the official reversal of a sorted array takes the last one first."""
    truth = _truth({"v": [("a", (0, 10))]})
    found = _found({"v": [("a", 0.5, (0, 10)), ("a", 0.5, (20, 30))]})
    assert ap.evaluate(truth, found, [0.5])["map"]["0.5"] == 1.0
    scores = np.array([0.5, 0.1, 0.5, 0.5])
    order = ap.rank_by_score(np.zeros(4, int), scores, official_order=True)
    assert order.tolist() == scores.argsort()[::-1].tolist()
    assert ap.evaluate(truth, found, [0.5], official_order=True)["map"]["0.5"] in (0.5, 1.0)
    assert ap.rank_by_score(np.zeros(0, int), np.zeros(0), official_order=True).shape == (0,)


def test_official_order_of_equal_tious():
    """A detection that overlaps two ground truths alike takes the one NumPy's reversed sort names, here literally."""
    segments = np.array([[0.0, 2.0], [1.0, 3.0]])
    order = np.array([1 / 2, 1 / 2]).argsort()[::-1]
    found = np.concatenate([[[1.0, 2.0]], segments[order[:1]]])  # the second wants what the first has taken
    claimed = ap.match(np.zeros(2, int), segments, np.zeros(2, int), found, np.array([0.5]), official_order=True)
    assert claimed.tolist() == [[order[0]], [-1]]
    stable = ap.match(np.zeros(2, int), segments, np.zeros(2, int), np.array([[1.0, 2.0], [0.0, 2.0]]), np.array([0.5]))
    assert stable.tolist() == [[0], [-1]]


def test_row_of_the_table():
    """Percent with one decimal under the paper's headings; ActivityNet shows three of its ten thresholds."""
    values = dict(zip(["0.3", "0.4", "0.5", "0.6", "0.7"], [0.692, 0.633, 0.559, 0.457, 0.334]))
    row = ap.format_row({"map": values, "average_map": 0.535})
    assert [line.split() for line in row.split("\n")] == [
        ["0.3", "0.4", "0.5", "0.6", "0.7", "Avg"],
        ["69.2", "63.3", "55.9", "45.7", "33.4", "53.5"],
    ]
    assert len({len(line) for line in row.split("\n")}) == 1
    truth = _truth({"v": [("a", (0, 1)), ("a long name", (2, 3))]})
    ten = ap.evaluate(truth, _found({"v": [("a", 1, (0, 0.8))]}), [round(0.5 + 0.05 * i, 2) for i in range(10)])
    assert ap.format_row(ten).split("\n")[0].split() == ["0.5", "0.75", "0.95", "Avg"]
    table = ap.format_row(ten, per_class=True).split("\n")
    assert [line[-24:].split() for line in table] == [
        ["0.5", "0.75", "0.95", "Avg"], ["100.0", "100.0", "0.0", "70.0"], ["0.0"] * 4, ["50.0", "50.0", "0.0", "35.0"]
    ]  # fmt: skip
    assert [line[:-24].strip() for line in table] == ["", "a", "a long name", "mAP"]
    assert len({len(line) for line in table}) == 1


def test_unanswerable_questions_are_named():
    """Unknown subset or class, thresholds that are none, nothing to find."""
    truth = _truth({"v": [("a", (0, 1))]})
    for arguments, words in [
        (([0.5], "tset"), "the file has: test"),
        (([0.5], "test", ["b"]), "no instance of b"),
        (([], None), "thresholds"),
        (([0.0], None), "thresholds"),
        (([0.5, 0.5], None), "thresholds"),
        (([float("nan")], None), "thresholds"),
    ]:
        with pytest.raises(UserError, match=words):
            ap.evaluate(truth, {"results": {}}, *arguments)
    with pytest.raises(UserError, match="no annotation"):
        ap.evaluate(_truth({"v": []}), {"results": {}}, [0.5])
    with pytest.raises(UserError, match="'v' has no field 'subset'"):
        ap.evaluate({"database": {"v": {"annotations": []}}}, {"results": {}}, [0.5], "test")
