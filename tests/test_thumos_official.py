"""THUMOS14's own protocol: against the MATLAB evaluator's stored result, a literal loop, and numbers by hand."""

import numpy as np
import pytest
import scipy.io
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep import thumos14
from data_prep.thumos14_files import CLASSES
from sptad_jax.data.annotations import to_database
from sptad_jax.errors import UserError
from sptad_jax.evaluation import average_precision, files, thumos_official
from tests.reference import thumos_official as reference

TIOUS = [0.25, 0.5, 0.75]


def make_truth(rows, listed=False, subset="test"):
    """rows: video -> [(label, (start, end))]; Ambiguous ones go under "ambiguous" if `listed`."""
    database = {}
    for video, entries in rows.items():
        apart = [list(s) for name, s in entries if listed and name == "Ambiguous"]
        kept = [{"label": n, "segment": list(s)} for n, s in entries if not (listed and n == "Ambiguous")]
        database[video] = {"subset": subset, "annotations": kept} | ({"ambiguous": apart} if apart else {})
    return {"database": database}


def make_found(rows):
    """rows: video -> [(label, score, (start, end))]."""
    return {
        "results": {
            video: [{"label": name, "score": score, "segment": list(s)} for name, score, s in entries]
            for video, entries in rows.items()
        }
    }


def ap_of(truth, found, threshold=0.5):
    return thumos_official.evaluate(make_truth(truth), make_found(found), [threshold])["average_map"]


@pytest.fixture(scope="module")
def official(shared):
    """The 213 test videos of the official text files."""
    return to_database(thumos14.load_thumos14(shared / "thumos14" / "official", ["test"]).videos)


@pytest.fixture(scope="module")
def scnn(shared):
    """S-CNN's windows, in its order: video number, class, start and end in seconds, weighted score."""
    folder = shared / "golden" / "scnn_c3d"
    rows = scipy.io.loadmat(folder / "res_seg_swin.mat")["seg_swin"]
    weight = scipy.io.loadmat(folder / "weight.mat")["weight"]
    rows = rows[rows[:, 10] != 0]
    label = rows[:, 10].astype(int) - 1
    score = rows[:, 8] * weight[np.log2(rows[:, 1] / 16).astype(int), label]
    return rows[:, 0].astype(int), label, rows[:, 4:6], score


def suppress(video, label, se, score, max_tiou):
    """S-CNN's NMS for each video and class: positions of what is kept, best score first."""
    kept = []
    order = np.lexsort((score, label, video))
    for group in np.split(order, np.flatnonzero(np.diff(video[order]) | np.diff(label[order])) + 1):
        picked = []
        while len(group):
            best, rest = group[-1], group[:-1]
            picked.append(best)
            inside = np.maximum(np.minimum(se[best, 1], se[rest, 1]) - np.maximum(se[best, 0], se[rest, 0]), 0)
            group = rest[inside / (np.ptp(se[best]) + np.ptp(se[rest], axis=1) - inside) <= max_tiou]
        kept += picked
    kept = np.array(kept)
    return kept[np.argsort(-score[kept], kind="stable")]


@pytest.mark.parametrize("k", range(5))
def test_equals_the_matlab_result_on_real_detections(shared, official, scnn, k):
    """10,285 to 24,244 detections of a published detector, AP of 20 classes: any deviation moves the third digit."""
    threshold = 0.1 * (k + 1)
    video, label, se, score = scnn
    found = {"results": {}}
    for i in suppress(video, label, se, score, threshold - 0.1).tolist():
        segment = [float(f"{t:.1f}") for t in se[i]]  # as they were written for MATLAB to read
        row = {"label": CLASSES[label[i]], "score": float(f"{score[i]:.5g}"), "segment": segment}
        found["results"].setdefault(f"video_test_{video[i]:07d}", []).append(row)
    results = thumos_official.evaluate(official, found, [threshold], "test")
    stored = scipy.io.loadmat(shared / "golden" / "scnn_c3d" / "res_scnn_thumos14.mat")
    assert [results["per_class"][name]["average"] for name in CLASSES] == pytest.approx(
        stored["AP_all"][0, k].ravel().tolist(), abs=1e-12
    )
    assert results["average_map"] == pytest.approx(stored["mAP"][0, k], abs=1e-12)
    assert results["protocol"] == "thumos-official"
    assert (results["num_videos"], results["num_ground_truth"], results["num_ignored_detections"]) == (213, 3358, 0)


_TIMES = st.tuples(st.integers(0, 12), st.integers(0, 8)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
_VIDEOS = st.sampled_from(["v2", "v10", "v3"])
_GT = st.lists(st.tuples(_VIDEOS, st.sampled_from(["a", "b", "Ambiguous"]), _TIMES), min_size=1, max_size=12)
_DET = st.lists(st.tuples(_VIDEOS, st.sampled_from("ab"), st.integers(0, 5).map(float), _TIMES), max_size=20)


def _group(rows):
    table = {}
    for video, *rest in rows:
        table.setdefault(video, []).append(tuple(rest))
    return table


@settings(deadline=None, max_examples=150)
@given(_GT, _DET, st.booleans())
@example([("v2", "a", (0.0, 4.0))], [("v3", "a", 1.0, (0.0, 4.0)), ("v2", "a", 1.0, (0.0, 4.0))], False)
@example(
    [("v2", "a", (0.0, 4.0)), ("v2", "a", (1.0, 5.0)), ("v2", "Ambiguous", (5.0, 6.0))],
    [("v2", "a", 3.0, (0.0, 5.0)), ("v2", "a", 2.0, (0.0, 3.0)), ("v2", "a", 1.0, (4.0, 7.0))],
    True,
)
def test_equals_the_literal_loop(gt_rows, det_rows, listed):
    """Ties of scores and of tIoUs, tIoUs of just a threshold, zero lengths, Ambiguous segments in either form, videos
    without ground truth, and videos in any order of the file."""
    labels = {label for _, label, _ in gt_rows} - {"Ambiguous"}
    if not labels:
        gt_rows = [*gt_rows, ("v3", "a", (0.0, 1.0))]
        labels = {"a"}
    truth, found = _group(gt_rows), _group(det_rows)
    results = thumos_official.evaluate(make_truth(truth, listed), make_found(found), TIOUS)
    assert results["per_class"].keys() == labels
    for label, row in results["per_class"].items():
        wanted = [reference.class_ap(truth, found, label, t) for t in TIOUS]
        assert [row["0.25"], row["0.5"], row["0.75"]] == pytest.approx(wanted, abs=1e-12)
        assert row["average"] == pytest.approx(sum(wanted) / 3, abs=1e-12)
    mean = [sum(row[key] for row in results["per_class"].values()) / len(labels) for key in results["map"]]
    assert list(results["map"].values()) == pytest.approx(mean, abs=1e-12)
    backwards = {video: found[video] for video in reversed(found)}
    assert thumos_official.evaluate(make_truth(truth, listed), make_found(backwards), TIOUS) == results


def test_overlap_must_exceed_the_threshold():
    """>= for >: a tIoU of exactly a half is no hit here, and is one in the ActivityNet protocol."""
    truth, found = {"v": [("a", (0, 10))]}, {"v": [("a", 0.9, (0, 5))]}
    assert (ap_of(truth, found), ap_of(truth, found, 0.49)) == (0.0, 1.0)
    assert average_precision.evaluate(make_truth(truth), make_found(found), [0.5])["average_map"] == 1.0


def test_the_ground_truth_chooses():
    """Detections that choose by score: the poor first one would be the hit (AP 1), here it is false and comes first."""
    truth = {"v": [("a", (0, 10))]}
    assert ap_of(truth, {"v": [("a", 0.9, (0, 6)), ("a", 0.8, (0, 10))]}) == 0.5
    # the first instance takes what the second needs, as it stands in the file; nothing is left for the second
    found = {"v": [("a", 0.9, (1, 10))]}
    assert ap_of({"v": [("a", (0, 10)), ("a", (1, 10))]}, found) == 0.5


def test_precision_is_not_interpolated():
    """False, true, true, false, true of three: 1/2, 2/3, 3/5; the interpolated area would be 2/3, 2/3, 3/5."""
    truth = {"v": [("a", (0, 10)), ("a", (20, 30)), ("a", (40, 50))]}
    segments = [(60, 70), (0, 10), (20, 30), (80, 90), (40, 50)]
    found = {"v": [("a", 1 - i / 10, segment) for i, segment in enumerate(segments)]}
    assert ap_of(truth, found) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)


@pytest.mark.parametrize("segment, ap", [
    ((12, 19), 1.0), ((5, 12.5), 1.0), ((19.5, 30), 1.0), ((0, 40), 1.0),
    ((10, 12.2), 0.5), ((15, 19.2), 0.5), ((20, 25), 0.5), ((13, 13), 0.5),
])  # fmt: skip
def test_detections_on_ambiguous_segments(segment, ap):
    """A false detection counts unless it overlaps, if only by a little; to touch an end is no overlap. A stretch of
    another video excuses nothing."""
    target, ambiguous = ("a", (100, 110)), [("Ambiguous", (12.2, 15)), ("Ambiguous", (19.2, 20))]
    found = {"v": [("a", 0.9, segment), ("a", 0.8, (100, 110))]}
    assert ap_of({"v": [target, *ambiguous]}, found) == ap
    assert ap_of({"v": [target], "w": ambiguous}, found) == 0.5


def test_a_hit_on_an_ambiguous_segment_counts():
    """A true positive that is left out because it overlaps an Ambiguous segment too; Ambiguous as a class to find."""
    truth = {"v": [("a", (0, 10)), ("Ambiguous", (5, 15))]}
    found = {"v": [("a", 0.9, (0, 10)), ("Ambiguous", 0.8, (5, 15))]}
    results = thumos_official.evaluate(make_truth(truth), make_found(found), [0.5])
    assert results["map"] == {"0.5": 1.0} and list(results["per_class"]) == ["a"]
    assert (results["num_ground_truth"], results["num_detections"], results["num_ignored_detections"]) == (1, 1, 1)


def test_videos_without_ground_truth():
    """A detection in a video that the ground truth does not know is false; one in another subset is left out."""
    truth = make_truth({"v": [("a", (0, 10))]})
    truth["database"] |= make_truth({"other": [("a", (0, 10))]}, subset="train")["database"]
    hit, miss = ("a", 0.5, (0, 10)), ("a", 0.9, (0, 10))
    for video, ap, ignored in (("unknown", 0.5, 0), ("other", 1.0, 1)):
        results = thumos_official.evaluate(truth, make_found({"v": [hit], video: [miss]}), [0.5], "test")
        assert (results["average_map"], results["num_ignored_detections"], results["num_videos"]) == (ap, ignored, 1)
    assert thumos_official.evaluate(truth, {"results": {}}, [0.5], "test")["average_map"] == 0.0


def test_test_sets_leave_out_what_they_should(official):
    """A list that leaves another number of videos and instances than is told."""
    instances = {213: 3358, 212: 3358, 211: 3329, 210: 3311}
    for number, names in thumos_official.TEST_SETS.items():
        videos, table = files.read_ground_truth(files.leave_out(official, "database", names), "test")
        assert (len(videos), len(table.labels)) == (number, instances[number])


def test_nothing_to_find():
    """Ambiguous segments alone, for which AP would be 0 / 0, and thresholds that are none."""
    with pytest.raises(UserError, match="no annotation"):
        thumos_official.evaluate(make_truth({"v": [("Ambiguous", (0, 1))]}), {"results": {}}, [0.5])
    with pytest.raises(UserError, match="distinct"):
        thumos_official.evaluate(make_truth({"v": [("a", (0, 1))]}), {"results": {}}, [0.5, 0.5])
