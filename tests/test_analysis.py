"""Error analysis: against figures of DETAD's own scripts, a literal loop, and cases worked out by hand."""

import csv
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sptad_jax.cli import main
from sptad_jax.errors import UserError
from sptad_jax.evaluation import analysis
from sptad_jax.evaluation.average_precision import evaluate
from sptad_jax.evaluation.files import load_detections, load_ground_truth
from tests.reference import analysis as reference
from tests.reference.analysis import to_files

TIOUS = [0.3, 0.5, 0.7]
ERRORS = analysis.TYPES[1:]

_TIMES = st.tuples(st.integers(0, 12), st.integers(0, 8)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
_LABELS = st.sampled_from("ab")
_TRUTH = st.fixed_dictionaries({v: st.lists(st.tuples(_LABELS, _TIMES), max_size=5) for v in "uv"}).filter(
    lambda truth: any(truth.values())
)
_FOUND = st.fixed_dictionaries(
    {v: st.lists(st.tuples(_LABELS, st.integers(0, 4).map(float), _TIMES), max_size=12) for v in "uv"}
)


@pytest.fixture(scope="module")
def golden(shared):
    """Real detections of THUMOS14, with the lengths of the videos."""
    folder = shared / "golden" / "scnn_c3d"
    truth = load_ground_truth(folder / "ground_truth_210.json")
    with (shared / "thumos14" / "afsd" / "test_video_info.csv").open() as file:
        for row in csv.DictReader(file):
            if row["video"] in truth["database"]:
                truth["database"][row["video"]]["duration"] = float(row["count"]) / float(row["fps"])
    return truth, load_detections(folder / "detections_unique.json.gz")


@pytest.fixture(scope="module")
def analysed(golden):
    return analysis.analyse(*golden, TIOUS, "test")


# What DETAD's three scripts say of the same 24,074 detections (24f7d95, on current NumPy and pandas).
_GAIN = (0.020654, 0.007824, 0.072146, 0.009965, 0.045065)
_PROFILE = {
    0: (0.302326, 0.066747, 0.028088, 0.364945, 0.057888, 0.180006),
    1: (0.140441, 0.075808, 0.050740, 0.303232, 0.143461, 0.286318),
    9: (0.008382, 0.016119, 0.039329, 0.213411, 0.306899, 0.415861),
}
_BUCKETS = {  # count, mAP_N averaged over tIoU, recall at tIoU 0.5
    "coverage": [(2362, 0.235513, 0.690093), (644, 0.256055, 0.625776), (156, 0.342199, 0.615385),
                 (59, 0.261834, 0.627119), (90, 0.162337, 0.555556)],
    "length": [(1607, 0.179835, 0.634101), (843, 0.263022, 0.691578), (711, 0.251446, 0.741210),
               (113, 0.161370, 0.592920), (37, 0.105644, 0.540541)],
    "num_instances": [(15, 0.299035, 0.466667), (2156, 0.242818, 0.636827), (727, 0.265591, 0.711142),
                      (413, 0.190901, 0.772397)],
}  # fmt: skip


def test_false_positives_equal_detad_on_real_detections(analysed):
    """Any other pairing, order of the causes, size of the bins or normalisation moves these figures."""
    errors = analysed["errors"]
    assert errors["num_detections"] == [3311, 3311, 3311, 2896, 2678, 2385, 1705, 1152, 646, 517]
    assert errors["map_n"]["average"] == pytest.approx(0.238463, abs=1e-6)
    assert [errors["gain"]["average"][e] for e in ERRORS] == pytest.approx(_GAIN, abs=1e-6)
    for b, shares in _PROFILE.items():
        assert [errors["profile"]["average"][t][b] for t in analysis.TYPES] == pytest.approx(shares, abs=1e-6)


def test_buckets_equal_detad_on_real_detections(analysed):
    """An instance in the wrong bucket, another N, detections of other buckets counted as false, precision ignored."""
    assert analysed["map_n"]["average"] == pytest.approx(0.239367590, abs=1e-9)
    assert {name: [(b["count"], b["map_n"]["average"], b["recall"]["0.5"]) for b in buckets]
            for name, buckets in analysed["characteristics"].items()} == {
        name: [pytest.approx(row, abs=1e-6) for row in rows] for name, rows in _BUCKETS.items()}  # fmt: skip
    assert [b["up_to"] for b in analysed["characteristics"]["num_instances"]] == [1, 40, 80, None]


def test_analysis_is_plain_json(analysed):
    """A NumPy value that JSON refuses, or a key that it would change."""
    assert json.loads(json.dumps(analysed, allow_nan=False)) == analysed


@settings(deadline=None, max_examples=150)
@given(_TRUTH, _FOUND)
@example({"u": [("a", (0.0, 4.0)), ("b", (0.0, 4.0))], "v": []}, {"u": [("a", 1.0, (0.0, 4.0))] * 2, "v": []})
@example({"u": [("a", (0.0, 4.0))], "v": []}, {"u": [("a", 1.0, (0.0, 4.0))] * 12 + [("b", 1.0, (1.0, 2.0))], "v": []})
def test_equals_the_literal_loop(truth, found):
    """Ties of scores and tIoUs, classes without detections, more than 10 G detections, segments of no length."""
    result = analysis.analyse(*to_files(truth, found), TIOUS)
    names = [(v, j) for v, rows in truth.items() for j in range(len(rows))]
    assert list(result["map_n"].values())[:-1] == pytest.approx([reference.map_n(truth, found, t) for t in TIOUS])
    for t in TIOUS:
        key = f"{t:g}"
        causes = reference.profile(truth, found, t)
        assert result["errors"]["num_detections"] == [len(c) for c in causes]
        assert result["errors"]["profile"][key] == {
            name: pytest.approx([c.count(name) / len(c) for c in causes]) for name in analysis.TYPES
        }
        base = reference.map_n(truth, found, t, factor=10)
        assert result["errors"]["map_n"][key] == pytest.approx(base)
        assert result["errors"]["gain"][key] == {
            e: pytest.approx(reference.map_n(truth, found, t, e, 10) - base, abs=1e-12) for e in ERRORS
        }
        hits = reference.found_instances(truth, found, t)
        assert result["recall"][key] == pytest.approx(len(hits) / len(names))
    for bucket in result["characteristics"]["length"]:
        low, high = bucket["above"], bucket["up_to"]
        lengths = {n: truth[n[0]][n[1]][1][1] - truth[n[0]][n[1]][1][0] for n in names}
        members = {n for n in names if (low is None or lengths[n] > low) and (high is None or lengths[n] <= high)}
        assert bucket["count"] == len(members)
        wanted = reference.bucket_map_n(truth, found, TIOUS, members)
        assert list(bucket["map_n"].values()) == pytest.approx([*wanted, np.mean(wanted)])
        shares = [len(reference.found_instances(truth, found, t) & members) / len(members) for t in TIOUS]
        assert list(bucket["recall"].values()) == pytest.approx([*shares, np.mean(shares)])


@pytest.mark.parametrize("label, segment, cause", [
    ("a", (1, 11), "true_positive"), ("a", (0, 9), "double_detection"), ("b", (0, 10), "wrong_label"),
    ("a", (0, 5), "double_detection"), ("a", (0, 4.9), "localisation"), ("b", (0, 4), "confusion"),
    ("a", (0, 1), "localisation"), ("a", (0, 0.9), "background"), ("a", (50, 60), "background"),
    ("b", (32, 37), "double_detection"), ("a", (20, 28), "wrong_label"),
])  # fmt: skip
def test_each_cause_by_hand(label, segment, cause):
    """Bounds belong to the upper cause (0.5 and 0.1 themselves); the nearest instance of any class decides."""
    truth = {"v": [("a", (0, 10)), ("b", (20, 28)), ("b", (30, 38)), ("a", (23, 30))]}
    taken = [] if cause == "true_positive" else [("a", 0.9, (0, 10)), ("b", 0.9, (30, 38)), ("a", 0.9, (23, 30))]
    rest = [(name, 0.2, (100 + k, 101 + k)) for k, name in enumerate("aabb")]  # so that nobody is alone in a bin
    result = analysis.analyse(*to_files(truth, {"v": [*taken, (label, 0.5, segment), *rest]}), [0.5])
    counts = dict.fromkeys(analysis.TYPES, 0)
    counts["true_positive"], counts["background"] = len(taken), len(rest)
    counts[cause] += 1
    errors = result["errors"]
    total = {t: round(float(np.dot(errors["profile"]["0.5"][t], errors["num_detections"])), 9) for t in analysis.TYPES}
    assert total == counts


def test_gain_by_hand():
    """One class, two instances, one false positive of a double detection before the second hit: 1/2 + 1/2 * 2/3 of
    mAP_N; without it all is right, without the background detection at the end nothing changes."""
    truth = {"v": [("a", (0, 10)), ("a", (20, 30))]}
    found = {"v": [("a", 0.9, (0, 10)), ("a", 0.8, (1, 10)), ("a", 0.7, (20, 30)), ("a", 0.6, (50, 60))]}
    errors = analysis.analyse(*to_files(truth, found), [0.5])["errors"]
    assert errors["map_n"]["0.5"] == pytest.approx(5 / 6) and errors["num_detections"] == [2, 2]
    assert errors["gain"]["average"] == pytest.approx(dict.fromkeys(ERRORS, 0.0) | {"double_detection": 1 / 6})
    assert errors["profile"]["0.5"]["double_detection"] == [0.5, 0]


def test_only_the_best_detections_are_examined():
    """Of one instance the ten best detections: a hit at rank 10 counts for the errors, one at rank 11 does not."""
    for before, examined in ((9, 1 / 10), (10, 0.0)):
        false = [("a", 0.9, (100 + k, 101 + k)) for k in range(before)]
        result = analysis.analyse(*to_files({"v": [("a", (0, 10))]}, {"v": [*false, ("a", 0.1, (0, 10))]}), [0.5])
        assert result["errors"]["map_n"]["0.5"] == pytest.approx(examined)
        assert result["errors"]["gain"]["0.5"]["background"] == pytest.approx(1 - examined if examined else 0.0)
        assert result["errors"]["num_detections"] == [1] * 10
        assert result["map_n"]["0.5"] == pytest.approx(1 / (before + 1))


def test_normalisation_by_hand():
    """A class with 1 instance and one with 3, N = 2: a false alarm before the only hit costs 1/3, not 1/2 of the rare
    class, and 3/5, not 1/2 of the frequent one. With classes of equal size mAP_N is mAP."""
    truth = {"v": [("a", (0, 10)), *(("b", (20 + 20 * k, 30 + 20 * k)) for k in range(3))]}
    found = {"v": [("a", 0.9, (200, 210)), ("a", 0.8, (0, 10)), ("b", 0.9, (200, 210)), ("b", 0.8, (20, 30))]}
    files = to_files(truth, found)
    expected = (2 / 3 + (1 / 3) * (2 / 3) / (2 / 3 + 1)) / 2
    assert analysis.analyse(*files, [0.5])["map_n"]["average"] == pytest.approx(expected)
    assert evaluate(*files, [0.5])["average_map"] == pytest.approx((1 / 2 + (1 / 3) * (1 / 2)) / 2)
    even = to_files({"v": truth["v"][:2]}, found)
    assert analysis.analyse(*even, [0.5])["map_n"] == pytest.approx({"0.5": 1 / 2, "average": 1 / 2})
    assert evaluate(*even, [0.5])["average_map"] == pytest.approx(1 / 2)


def test_recall_ignores_hits_among_many_false_alarms():
    """An instance that only the 40th detection reaches: precision 1/40 does not count as found, 1/19 does."""
    for before, recall in ((39, 0.0), (18, 1.0), (19, 0.0)):
        false = [("a", 0.9, (100 + k, 101 + k)) for k in range(before)]
        files = to_files({"v": [("a", (0, 10))]}, {"v": [*false, ("a", 0.1, (0, 10))]})
        assert analysis.analyse(*files, [0.5])["recall"]["0.5"] == recall


def test_buckets_by_hand():
    """Edges belong to the bucket below them; instances of a video are counted over its classes; more than the whole
    video is XL; a detection that takes an instance of another bucket is no false alarm here."""
    truth = {"u": [("a", (0, 30)), ("b", (40, 71)), ("a", (0, 181))], "v": [("a", (0, 100)), ("a", (0, 70))]}
    files = to_files(truth, {"u": [("a", 0.9, (0, 181)), ("a", 0.8, (0, 30)), ("b", 0.7, (200, 210))]}, duration=150)
    result = analysis.analyse(*files, [0.5])["characteristics"]

    def shape(name):
        return [(b["name"], b["above"], b["up_to"], b["count"]) for b in result[name]]

    assert shape("length") == [("XS", None, 30, 1), ("S", 30, 60, 1), ("M", 60, 120, 2), ("XL", 180, None, 1)]
    assert shape("coverage") == [
        ("XS", None, 0.2, 1), ("S", 0.2, 0.4, 1), ("M", 0.4, 0.6, 1), ("L", 0.6, 0.8, 1), ("XL", 0.8, None, 1)]
    assert shape("num_instances") == [("S", 1, 4, 5)]
    shortest, longest = result["length"][0], result["length"][-1]
    assert shortest["map_n"]["0.5"] == longest["map_n"]["0.5"] == 1.0
    assert [b["recall"]["0.5"] for b in result["length"]] == [1, 0, 0, 1]


def test_edges_suit_the_data():
    """The buckets of ActivityNet for its lengths, those of THUMOS14 for short actions; equal ones go to ActivityNet."""
    assert analysis.choose_edges("length", np.array([20.0, 50.0, 90.0])) == (30, 60, 120, 180)
    assert analysis.choose_edges("length", np.array([2.0, 5.0, 9.0])) == (3, 6, 12, 18)
    assert analysis.choose_edges("coverage", np.array([0.01, 0.03, 0.05, 0.5])) == (0.02, 0.04, 0.06, 0.08)
    assert analysis.choose_edges("num_instances", np.array([1.0, 3.0])) == (1, 4, 8)


def test_no_detection_and_no_duration():
    """Nothing found is no crash: every share is 0; without durations there is no coverage; one of them may be text."""
    truth, found = to_files({"u": [("a", (0, 10))], "v": [("b", (0, 10))]}, {})
    result = analysis.analyse(truth, found, [0.5])
    assert set(result["characteristics"]) == {"length", "num_instances"} and result["map_n"]["0.5"] == 0
    assert result["errors"]["num_detections"] == [] and result["errors"]["profile"]["0.5"]["background"] == []
    assert set(result["errors"]["gain"]["average"].values()) == {0.0} and result["proposals"]["auc"] == 0
    strangers = {"results": {"u": [{"label": "z", "score": 1, "segment": [0, 10]}], "w": []}}
    assert analysis.analyse(truth, strangers, [0.5])["num_detections"] == 0
    for entry in truth["database"].values():
        entry["duration"] = "50"
    assert analysis.analyse(truth, found, [0.5])["characteristics"]["coverage"][0]["count"] == 2


@pytest.mark.parametrize("duration", ["long", 0, -1, [3], "nan", "inf"])
def test_bad_duration_is_named(duration):
    """A traceback, or shares of nothing, from a duration that is none."""
    truth, found = to_files({"u": [("a", (0, 10))]}, {}, duration)
    with pytest.raises(UserError, match=r"video 'u': 'duration' is .* give positive seconds"):
        analysis.analyse(truth, found, [0.5])


def test_nothing_annotated_and_bad_thresholds():
    """A division by zero or an empty mean instead of a sentence."""
    with pytest.raises(UserError, match="there is no annotation"):
        analysis.analyse(*to_files({"u": []}, {}), [0.5])
    for tious in ([], [0.5, 0.5], [0.0], [1.5]):
        with pytest.raises(UserError, match="must be distinct"):
            analysis.analyse(*to_files({"u": [("a", (0, 10))]}, {}), tious)


def test_command_writes_the_analysis(tmp_path, capsys):
    """`sptad evaluate --analysis`: other thresholds or another subset than those of mAP, no file, or a traceback."""
    truth, found = to_files({"u": [("a", (0, 10))], "v": [("b", (0, 10))]}, {"u": [("a", 0.5, (0, 6))]}, 40.0)
    for entry, subset in zip(truth["database"].values(), ("test", "train")):
        entry["subset"] = subset
    for name, content in (("gt", truth), ("det", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    command = ["evaluate", "--ground-truth", str(tmp_path / "gt.json"), "--detections", str(tmp_path / "det.json")]
    folder = tmp_path / "new" / "analysis"
    assert main([*command, "--subset", "test", "--tiou", "0.5,0.7", "--analysis", str(folder)]) == 0
    written = json.loads((folder / "analysis.json").read_text())
    assert written == analysis.analyse(truth, found, [0.5, 0.7], "test") and written["num_ground_truth"] == 1
    assert f"analysis: {folder / 'index.html'}" in capsys.readouterr().out
    assert (folder / "index.html").read_text().count("<figure>") == 5
    assert main([*command, "--analysis", str(tmp_path / "gt.json")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --analysis {tmp_path / 'gt.json'}: cannot be written")
