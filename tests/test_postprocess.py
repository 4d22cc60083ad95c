"""From proposals to detections: against loops in plain Python, numbers worked out by hand, and symmetries."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.config import InferenceConfig
from sptad_jax.errors import UserError
from sptad_jax.inference import nms, postprocess
from tests.reference import soft_nms as reference

RAW = InferenceConfig(combine="none", nms="none", min_score=0.0)
CLASSES = ("a", "b", "c")


def _run(prob, segments, config=RAW, clip=None, starts=None, length=10.0, duration=1000.0, external=None, classes=None):
    prob = np.asarray(prob, np.float32)
    starts = np.arange(len(prob)) * length if starts is None else np.asarray(starts)
    classes = CLASSES[: prob.shape[-1]] if classes is None else classes
    return postprocess.postprocess_video(
        prob, np.asarray(segments, np.float32), clip, starts, length, duration, classes, config, external
    )


def _random(seed, windows=4, proposals=6, num_classes=3):
    rng = np.random.default_rng(seed)
    prob = rng.uniform(0.01, 1, (windows, proposals, num_classes))
    segments = np.sort(rng.uniform(-0.2, 1.2, (windows, proposals, 2)), axis=-1)
    return prob, segments, rng.uniform(0.1, 1, (windows, num_classes)), np.arange(windows) * 5.0


_SEGMENT = st.tuples(st.integers(0, 10), st.integers(0, 6)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
_ROWS = st.lists(st.tuples(_SEGMENT, st.integers(1, 20).map(lambda x: x / 20)), max_size=60)


def _split(rows):
    return np.array([s for s, _ in rows]).reshape(-1, 2), np.array([score for _, score in rows])


@settings(deadline=None, max_examples=100)
@given(_ROWS, st.sampled_from([0.05, 0.5, 0.9]), st.sampled_from([0.0, 0.001, 0.2]))
def test_soft_nms_equals_the_loop(rows, sigma, min_score):
    """Order, decay, ties, zero lengths and the floor; many rows also cross the step that drops finished ones."""
    segments, scores = _split(rows)
    index, decayed = nms.soft_nms(segments, scores, sigma, min_score)
    wanted = reference.soft_nms(segments, scores, sigma, min_score)
    assert decayed == pytest.approx([score for _, score in wanted], rel=1e-9)
    assert dict(zip(index.tolist(), decayed.tolist())) == pytest.approx(dict(wanted), rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(_ROWS, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_hard_nms_equals_the_loop(rows, max_tiou):
    """A tIoU of exactly the threshold is kept; chains (A over B over C) must not suppress C through B."""
    segments, scores = _split(rows)
    assert nms.hard_nms(segments, scores, max_tiou).tolist() == reference.hard_nms(segments, scores, max_tiou)


def test_soft_nms_on_large_random_input_equals_the_loop():
    """Hundreds of candidates: finished ones are dropped several times on the way, which must not mix up rows."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 50, 300)
    segments, scores = np.stack([start, start + rng.uniform(1, 20, 300)], -1), rng.uniform(size=300)
    index, decayed = nms.soft_nms(segments, scores, 0.3, 0.01)
    wanted = reference.soft_nms(segments, scores, 0.3, 0.01)
    assert index.tolist() == [i for i, _ in wanted] and 20 < len(wanted) < 300
    assert decayed == pytest.approx([score for _, score in wanted], rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 2.0, 20.0]), st.integers(1, 4), st.booleans())
def test_suppression_over_a_long_video_equals_the_loop(seed, longest, groups, soft):
    """Many stretches of time taken in parallel: a neighbour forgotten, a stretch that takes before a better neighbour,
    groups that see each other, ties (scores are few) between stretches."""
    rng = np.random.default_rng(seed)
    start = np.round(rng.uniform(0, 150, (groups, 250)), 1)
    segments = np.stack([start, start + np.round(rng.uniform(0, longest, start.shape), 1)], -1)
    scores = rng.integers(0, 12, start.shape) / 12
    decay = nms.gaussian_decay(0.4) if soft else nms.box_decay(0.3)
    found = nms.greedy_nms(segments, scores, decay, 0.05)
    for row in range(groups):
        if soft:
            wanted = dict(reference.soft_nms(segments[row], scores[row], 0.4, 0.05))
        else:
            kept = reference.hard_nms(segments[row], scores[row], 0.3)
            wanted = {i: scores[row, i] for i in kept if scores[row, i] >= 0.05}
        assert {i: v for i, v in enumerate(found[row].tolist()) if v} == pytest.approx(wanted, rel=1e-9)


def test_two_identical_segments_decay_by_the_published_factor():
    """exp(-1 / 0.5) = 0.1353; a linear soft-NMS or tIoU that is not squared over sigma differs elsewhere."""
    index, decayed = nms.soft_nms(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 1.0]), 0.5, 0.001)
    assert index.tolist() == [0, 1] and decayed == pytest.approx([1.0, math.exp(-2)])
    _, decayed = nms.soft_nms(np.array([[0.0, 2.0], [1.0, 3.0]]), np.array([1.0, 1.0]), 0.5, 0.001)
    assert decayed[1] == pytest.approx(math.exp(-2 / 9))


def _vote(score, segments_sec, starts, length, w, n, a):
    """The mean vote on proposal n of window w for class a: who holds it whole, within the rounding of times?"""
    low, high = segments_sec[w][n]
    votes = [score[w][n][a]]
    for other, start in enumerate(starts):
        if other != w and low >= start - 1e-4 and high <= start + length + 1e-4:
            best = 0.0
            for (s, e), value in zip(segments_sec[other], score[other]):
                common = max(min(high, e) - max(low, s), 0.0)
                union = (high - low) + (e - s) - common
                best = max(best, value[a] * (common / union) ** 2 if union > 0 else 0.0)
            votes.append(best)
    return sum(votes) / len(votes)


def _brute(prob, segments, clip, starts, length, duration, config):
    """The whole of post-processing with plain loops."""
    rows = []
    adjusted = np.zeros(prob.shape)
    seconds = [[[0.0, 0.0] for _ in row] for row in segments]
    for w, n, a in np.ndindex(prob.shape):
        score = float(np.float32(prob[w, n, a]))
        if config.combine == "product":
            score *= clip[w, a]
        elif config.combine == "sqrt":
            score = math.sqrt(score * clip[w, a])
        low, high = (starts[w] + length * min(max(float(np.float32(x)), 0.0), 1.0) for x in segments[w, n])
        seconds[w][n] = [min(max(round(x, 4), 0.0), duration) for x in (low, high)]
        adjusted[w, n, a] = score
    for w, n, a in np.ndindex(prob.shape):
        score, (low, high) = adjusted[w, n, a], seconds[w][n]
        if config.vote:
            score = math.sqrt(score * _vote(adjusted, seconds, starts, length, w, n, a))
        if score >= config.min_score and high > low:
            rows.append((-score, low, high, a))
    rows.sort()
    kept = []
    for group in [[a] for a in range(prob.shape[2])] if config.nms_per_class else [list(range(prob.shape[2]))]:
        part = [row for row in rows if row[3] in group]
        spans, scores = [row[1:3] for row in part], [-row[0] for row in part]
        if config.nms == "soft":
            taken = reference.soft_nms(spans, scores, config.nms_sigma, config.nms_min_score)
        elif config.nms == "hard":
            taken = [(i, scores[i]) for i in reference.hard_nms(spans, scores, config.nms_tiou)]
        else:
            taken = list(enumerate(scores))
        kept += [(-score, *part[i][1:]) for i, score in taken]
    kept.sort()
    return [{"label": CLASSES[a], "score": -s, "segment": [low, high]} for s, low, high, a in kept]


@pytest.mark.parametrize("combine", ["product", "sqrt", "none"])
@pytest.mark.parametrize("nms", ["soft", "hard", "none"])
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("vote", [True, False])
def test_whole_chain_equals_plain_loops(combine, nms, per_class, vote):
    """Every combination of score rule, vote, NMS and grouping, with a cut, clamps and overlapping windows."""
    config = InferenceConfig(
        combine=combine, nms=nms, nms_per_class=per_class, vote=vote, min_score=0.15, nms_min_score=0.05
    )
    prob, segments, clip, starts = _random(3)
    found = _run(prob, segments, config, clip, starts, 10.0, 18.0)
    wanted = _brute(prob, segments, clip, starts, 10.0, 18.0, config)
    assert len(found) == len(wanted) > 10
    for row, other in zip(found, wanted):
        assert row["label"] == other["label"]
        assert row["score"] == pytest.approx(other["score"], rel=1e-6)
        assert row["segment"] == pytest.approx(other["segment"], abs=1.1e-4)


def test_score_rules_by_hand():
    """Product as the paper writes, geometric mean, none; without a clip head the class probability stands."""
    prob, segments, clip = [[[0.5, 0.25]]], [[[0.0, 1.0]]], np.array([[0.5, 1.0]])
    scores = {
        rule: {row["label"]: row["score"] for row in _run(prob, segments, dataclasses.replace(RAW, combine=rule), clip)}
        for rule in ("product", "sqrt", "none")
    }
    assert scores == {"product": {"a": 0.25, "b": 0.25}, "sqrt": {"a": 0.5, "b": 0.5}, "none": {"a": 0.5, "b": 0.25}}
    assert [row["score"] for row in _run(prob, segments, dataclasses.replace(RAW, combine="product"))] == [0.5, 0.25]


def test_votes_by_hand():
    """Windows [0, 10] and [5, 15]. One finds [6, 8] with 0.8, the other [6, 10] with 0.4: tIoU 1/2, so votes are 0.1
    for [6, 8], 0.2 for [6, 10]. [1, 3] and [12, 14] lie in one window, [4, 9] begins before the other: own score."""
    segments = [[[0.6, 0.8], [0.1, 0.3], [0.4, 0.9]], [[0.1, 0.5], [0.7, 0.9], [0.7, 0.9]]]
    prob = [[[0.8, 0.0], [0.3, 0.0], [0.0, 0.7]], [[0.4, 0.0], [0.5, 0.0], [0.0, 0.6]]]
    config = dataclasses.replace(RAW, vote=True, min_score=0.01)
    found = {(row["label"], *row["segment"]): row["score"] for row in _run(prob, segments, config, starts=[0.0, 5.0])}
    wanted = {
        ("a", 6.0, 8.0): math.sqrt(0.8 * (0.8 + 0.1) / 2), ("a", 6.0, 10.0): math.sqrt(0.4 * (0.4 + 0.2) / 2),
        ("a", 1.0, 3.0): 0.3, ("a", 12.0, 14.0): 0.5, ("b", 4.0, 9.0): 0.7, ("b", 12.0, 14.0): 0.6,
    }  # fmt: skip
    assert found == pytest.approx(wanted, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([2.5, 5.0, 10.0]), st.sampled_from([7.0, 21.0, 40.0]))
def test_votes_equal_the_loop(seed, windows, stride, duration):
    """Windows that meet three others, two or none, and reach beyond the video: a voter that is forgotten or counted
    where it sees a part only, votes given back in the order of time and not of the windows."""
    prob, segments, _, _ = _random(seed, windows)
    starts = np.arange(windows) * stride
    seconds = np.clip(np.round(starts[:, None, None] + np.clip(segments, 0, 1) * 10.0, 4), 0.0, duration)
    found = postprocess.window_votes(prob, seconds, starts, 10.0)
    for index in np.ndindex(prob.shape):
        assert found[index] == pytest.approx(_vote(prob, seconds, starts, 10.0, *index), rel=1e-9, abs=1e-12)
    turn = np.random.default_rng(seed).permutation(windows)
    assert np.array_equal(postprocess.window_votes(prob[turn], seconds[turn], starts[turn], 10.0), found[turn])


def test_external_scores_multiply_by_label():
    """Matched by label, not by position; a label that is not named counts as 0 and goes with the cut."""
    config = dataclasses.replace(RAW, min_score=0.001)
    found = _run([[[0.5, 0.5, 0.5]]], [[[0.0, 1.0]]], config, external={"c": 0.5, "b": 1.0, "other": 9.0})
    assert [(row["label"], row["score"]) for row in found] == [("b", 0.5), ("c", 0.25)]
    with pytest.raises(UserError, match="no label"):
        _run([[[0.5]]], [[[0.0, 1.0]]], config, external={"other": 1.0})


def test_segments_are_clamped_to_window_then_video_and_empty_ones_go():
    """Share of the window -> seconds with the window's start added; what lies outside window or video is cut off."""
    segments = [[[0.25, 0.5], [-1.0, 2.0], [0.5, 0.5], [0.7, 0.6], [0.85, 0.95]]]
    found = _run([[[0.9], [0.8], [0.7], [0.6], [0.5]]], segments, starts=[20.0], length=10.0, duration=28.0)
    assert [row["segment"] for row in found] == [[22.5, 25.0], [20.0, 28.0]]
    assert _run(np.ones((1, 1, 1)), [[[0.0, 0.000001]]]) == []


def test_times_are_rounded_to_a_tenth_of_a_millisecond():
    """Files hold 3.3333, not 3.3333334922790527; the end of the video is not overstepped by rounding."""
    assert _run([[[1.0]]], [[[1 / 3, 1.0]]], duration=9.99999)[0]["segment"] == [3.3333, 9.99999]


def test_cut_is_inclusive_and_taken_over_all_pairs():
    """Two classes of one proposal are two detections; a score of exactly min_score stays."""
    found = _run([[[0.5, 0.25, 0.125]]], [[[0.0, 1.0]]], dataclasses.replace(RAW, min_score=0.25))
    assert [(row["label"], row["score"]) for row in found] == [("a", 0.5), ("b", 0.25)]


def test_nms_floor_holds_for_soft_only():
    """nms_min_score ends soft-NMS; hard NMS keeps what the first cut let through."""
    prob, segments = [[[0.9], [0.1]]], [[[0.0, 0.4], [0.5, 1.0]]]
    soft = InferenceConfig(combine="none", nms_min_score=0.2)
    assert len(_run(prob, segments, soft)) == 1
    assert len(_run(prob, segments, dataclasses.replace(soft, nms="hard"))) == 2


def test_caps_keep_the_best():
    """max_per_class counts within a class, max_per_video over all; 0 is no limit."""
    prob, segments, _, starts = _random(5)
    everything = _run(prob, segments, starts=starts)
    per_class = _run(prob, segments, dataclasses.replace(RAW, max_per_class=2), starts=starts)
    for label in CLASSES:
        assert [r for r in per_class if r["label"] == label] == [r for r in everything if r["label"] == label][:2]
    assert _run(prob, segments, dataclasses.replace(RAW, max_per_video=5), starts=starts) == everything[:5]
    assert _run(prob, segments, dataclasses.replace(RAW, max_per_class=0), starts=starts) == everything


def test_nms_per_class_or_agnostic():
    """Two classes on one segment: both stay per class, one goes when classes are ignored."""
    config = InferenceConfig(combine="none", nms="hard")
    assert len(_run([[[0.9, 0.8]]], [[[0.0, 1.0]]], config)) == 2
    agnostic = _run([[[0.9, 0.8]]], [[[0.0, 1.0]]], dataclasses.replace(config, nms_per_class=False))
    assert [row["label"] for row in agnostic] == ["a"]


def test_edge_rule_suppresses_in_shared_stretches_only():
    """Windows [0, 10] and [6, 16] share [6, 10]: duplicates at 1..3 stay, those that reach past 6 are suppressed."""
    segments = [[[0.1, 0.3], [0.1, 0.3], [0.5, 0.9]], [[0.0, 0.3], [0.7, 0.9], [0.7, 0.9]]]
    prob = [[[0.9], [0.8], [0.7]], [[0.6], [0.5], [0.4]]]
    config = InferenceConfig(combine="none", nms="hard", edge_rule=True)
    found = _run(prob, segments, config, starts=[0.0, 6.0])
    assert [row["score"] for row in found] == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.4])
    assert len(_run(prob, segments, dataclasses.replace(config, edge_rule=False), starts=[0.0, 6.0])) == 3
    assert len(_run(prob, segments, config, starts=[0.0, 20.0])) == 6  # no shared stretch, nothing to suppress


def test_touching_an_overlap():
    """Touching needs a common stretch of positive length; a lone window shares nothing, repeated starts count once."""
    segments = np.array([[0.0, 6.0], [5.0, 6.1], [7.0, 8.0], [10.0, 11.0], [0.0, 16.0]])
    wanted = [False, True, True, False, True]
    assert postprocess.touches_overlap(segments, np.array([6.0, 0.0, 0.0]), 10.0).tolist() == wanted
    assert not postprocess.touches_overlap(segments, np.array([0.0]), 10.0).any()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_order_of_windows_proposals_and_classes_does_not_matter(seed, windows):
    """Any order of windows, proposals and classes gives the same list, also where segments and scores are equal."""
    prob, segments, clip, starts = _random(seed)
    prob, segments = np.round(prob, 1), np.round(segments, 1)  # many ties
    config = InferenceConfig(vote=seed % 2 == 1)
    before = _run(prob, segments, config, clip, starts)
    turned = _run(prob[windows][:, ::-1], segments[windows][:, ::-1], config, clip[windows], starts[windows])
    assert turned == before
    renamed = _run(prob[..., ::-1], segments, config, clip[..., ::-1], starts, classes=CLASSES[::-1])
    key = lambda row: (row["label"], row["score"], row["segment"])  # noqa: E731
    assert sorted(renamed, key=key) == sorted(before, key=key)


def test_shifted_and_sped_up_video_gives_shifted_and_scaled_detections():
    """Moving all windows moves the segments and leaves scores; doubling the window doubles the times."""
    prob, segments, clip, starts = _random(9)
    before = _run(prob, segments, InferenceConfig(), clip, starts)
    moved = _run(prob, segments, InferenceConfig(), clip, starts + 64.0)
    doubled = _run(prob, segments, InferenceConfig(), clip, starts * 2, length=20.0)
    for rows, change in [(moved, lambda x: x + 64), (doubled, lambda x: 2 * x)]:
        assert [r["score"] for r in rows] == pytest.approx([r["score"] for r in before], rel=1e-3)
        for row, old in zip(rows, before):
            assert row["segment"] == pytest.approx([change(x) for x in old["segment"]], abs=2e-4)


def test_sorted_by_score_and_plain_python_values():
    """Soft-NMS of several classes is merged in descending score; json must take every value."""
    prob, segments, clip, starts = _random(1)
    found = _run(prob, segments, InferenceConfig(), clip, starts)
    assert found == sorted(found, key=lambda row: -row["score"]) and json.loads(json.dumps(found)) == found
    assert len({row["label"] for row in found[:10]}) > 1


def test_nothing_in_nothing_out():
    """No window, or no score above the cut, is an empty list for every kind of NMS."""
    for config in (InferenceConfig(nms=kind, edge_rule=True, vote=True) for kind in ("soft", "hard", "none")):
        assert _run(np.zeros((2, 3, 3)), np.zeros((2, 3, 2)), config, np.zeros((2, 3))) == []
        assert _run(np.zeros((0, 3, 3)), np.zeros((0, 3, 2)), config, np.zeros((0, 3))) == []


def test_impossible_input_is_refused():
    """NaN would compare false and vanish as "no detections"; shapes that disagree must not broadcast."""
    with pytest.raises(UserError, match="not finite"):
        _run([[[np.nan]]], [[[0.0, 1.0]]])
    with pytest.raises(UserError, match="not finite"):
        _run([[[0.5]]], [[[0.0, np.nan]]])
    with pytest.raises(ValueError, match="disagree"):
        _run(np.ones((1, 2, 3)), np.ones((1, 1, 2)))
    with pytest.raises(UserError, match="nms_sigma"):
        _run([[[0.5]]], [[[0.0, 1.0]]], InferenceConfig(nms_sigma=0.0))


def test_detections_file(tmp_path):
    """ActivityNet's three top-level keys; a failure leaves the old file and no rubbish."""
    results = {"v": _run([[[0.5]]], [[[0.0, 1.0]]]), "empty": []}
    path = tmp_path / "new" / "detections.json"
    postprocess.write_detections(path, results)
    content = json.loads(path.read_text())
    assert set(content) == {"version", "results", "external_data"} and content["external_data"] == {}
    assert content["results"] == {"v": [{"label": "a", "score": 0.5, "segment": [0.0, 10.0]}], "empty": []}
    with pytest.raises(ValueError):
        postprocess.write_detections(path, {"v": [{"label": "a", "score": float("nan"), "segment": [0, 1]}]})
    assert json.loads(path.read_text()) == content and [p.name for p in path.parent.iterdir()] == [path.name]
    for unwritable in (path.parent, path / "below.json"):
        with pytest.raises(UserError, match="cannot be written"):
            postprocess.write_detections(unwritable, results)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_external_score_files(tmp_path):
    """Both layouts read alike; broken ones are named in a sentence."""
    path = tmp_path / "scores.json"
    wanted = {"v": {"a": 0.25, "b": 0.75}}
    for content in (wanted, {"class": ["a", "b"], "results": {"v": [[0.25, 0.75]]}}):
        path.write_text(json.dumps(content))
        assert postprocess.load_external_scores(path, ["v"]) == wanted
    for content in ([], {"v": [1]}, {"class": ["a"], "results": {"v": [1, 2]}}, {"v": {"a": -1}}, {"v": {"a": "x"}}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"scores\.json"):
            postprocess.load_external_scores(path, [])
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        postprocess.load_external_scores(path, [])
    with pytest.raises(UserError, match="cannot be read"):
        postprocess.load_external_scores(tmp_path / "absent.json", [])


def test_external_scores_of_every_video(tmp_path):
    """A file whose names differ by a prefix and that changes nothing, and a video without scores, whose detections
    would outrank all others."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"v_one": {"a": 0.5}, "two": {"a": 0.25}, "unused": {"a": 1}}))
    assert postprocess.load_external_scores(path, ["one", "v_two"]) == {"one": {"a": 0.5}, "v_two": {"a": 0.25}}
    with pytest.raises(UserError, match=r"scores\.json: has no scores of 2 of the 3 videos, 'three' first"):
        postprocess.load_external_scores(path, ["one", "three", "four"])
