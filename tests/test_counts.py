"""data_prep.counts against a slow loop, and against counting frames from 1 as AFSD does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.counts import Length, count, count_windows, describe_durations, make_targets
from sptad_jax.data.annotations import Annotation, Video
from sptad_jax.data.windows import VideoTargets
from sptad_jax.errors import UserError
from tests.reference.window_targets import list_windows

CLASSES = ("a", "b", "c", "d")
instances_of = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 50), st.integers(0, 3)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    max_size=6)
videos_of = st.lists(st.tuples(st.integers(5, 90), instances_of), min_size=1, max_size=4)


def to_targets(videos):
    return [VideoTargets(f"v{i}", i, num_frames, np.array([row[:2] for row in rows], float).reshape(-1, 2),
                         np.array([row[2] for row in rows], np.int32)) for i, (num_frames, rows) in enumerate(videos)]


@settings(deadline=None, max_examples=60)
@given(videos=videos_of, stride=st.integers(1, 40), rule=st.sampled_from(["paper", "afsd", "all"]))
def test_windows_equal_slow_loop(videos, stride, rule):
    """Catches another rule than the one asked for, windows of a video lost, and targets counted without their mask."""
    expected = [targets for num_frames, rows in videos for _, targets, _ in list_windows(
        num_frames, rows, length=32, stride=stride, rule=rule, min_tioa=0.5, action_targets="kept")]
    assert count_windows(to_targets(videos), rule=rule, length=32, stride=stride) == {
        "windows": len(expected), "kept_targets": sum(map(len, expected)),
        "most_targets": max(map(len, expected), default=0)}


@settings(deadline=None, max_examples=60)
@given(videos=videos_of, stride=st.integers(1, 40))
def test_frames_from_one_equals_afsds_loop(videos, stride):
    """Catches windows that do not reach from offset + 1 to offset + length, as AFSD's do."""
    windows, kept = 0, []
    for num_frames, rows in videos:
        offsets = list(range(0, num_frames - 31, stride)) or [0]
        if num_frames > 32 and offsets[-1] != num_frames - 32:
            offsets.append(num_frames - 32)
        for offset in offsets:
            left, right = offset + 1, offset + 32
            shares = [(min(right, b) - max(left, a)) / (b - a) for a, b, _ in rows]
            if any(share >= 1 for share in shares):
                windows += 1
                kept.append(sum(share >= 0.5 for share in shares))
    assert count_windows(to_targets(videos), rule="afsd", length=32, stride=stride, frames_from=1) == {
        "windows": windows, "kept_targets": sum(kept), "most_targets": max(kept, default=0)}


@settings(deadline=None, max_examples=30)
@given(videos=videos_of, fps=st.sampled_from([2.0, 10.0]), rule=st.sampled_from(["paper", "afsd", "all"]))
def test_count_equals_slow_loop_from_seconds(videos, fps, rule):
    """Catches seconds taken as frames, instances counted after the cut at the video's end, and a wrong total."""
    listed = [Video(f"v{i}", "s", 0.0, [Annotation((a / fps, b / fps), CLASSES[c]) for a, b, c in rows])
              for i, (_, rows) in enumerate(videos)]
    lengths = {f"v{i}": Length(n, fps, n / fps) for i, (n, _) in enumerate(videos)}
    result = count(listed, lengths, CLASSES, rule=rule, length=32, stride=8)
    expected = [targets for n, rows in videos for _, targets, _ in list_windows(
        n, [(a, min(b, n), c) for a, b, c in rows if a < n], length=32, stride=8, rule=rule, min_tioa=0.5,
        action_targets="kept")]
    assert result["windows"] == len(expected) and result["kept_targets"] == sum(map(len, expected))
    assert result["videos"] == len(videos) and result["instances"] == sum(len(rows) for _, rows in videos)
    assert result["frames"] == sum(n for n, _ in videos)
    late = sum(b > n for n, rows in videos for _, b, _ in rows)
    assert len(result["exceptions"]) == late


def test_video_of_unknown_length():
    """A video that loses its windows must be named, and must still be counted as a video with its instances."""
    listed = [Video("known", "s", 0.0, [Annotation((1.0, 2.0), "a")]),
              Video("unknown", "s", 0.0, [Annotation((1.0, 5.0), "b")])]
    result = count(listed, {"known": Length(50, 10.0, 5.0)}, CLASSES, rule="all", length=32, stride=8,
                   exceptions=["before"])
    assert (result["videos"], result["instances"], result["windows"], result["kept_targets"]) == (2, 2, 4, 2)
    assert result["exceptions"][0] == "before" and "'unknown'" in result["exceptions"][1]
    nothing = count(listed, {}, CLASSES, rule="paper", length=32, stride=8)
    assert (nothing["windows"], nothing["kept_targets"], nothing["most_targets"], nothing["frames"]) == (0, 0, 0, 0)
    assert len(nothing["exceptions"]) == 2


@pytest.mark.parametrize(("change", "word"), [({"length": 0}, "--length"), ({"stride": -1}, "--stride"),
                                              ({"videos": []}, "--subset")])
def test_unusable_request(change, word):
    """A traceback, an endless loop or an empty answer for a request that cannot be met."""
    request = {"videos": [Video("v", "s", 0.0, [])], "length": 32, "stride": 8} | change
    with pytest.raises(UserError, match=word):
        count(request.pop("videos"), {}, CLASSES, rule="all", **request)


def test_durations_by_hand():
    """Quantiles of the wrong thing: starts, frames, or an order of the videos."""
    rows = [Annotation((10.0, 10.0 + length), "a") for length in (4.0, 1.0, 3.0, 2.0, 5.0)]
    result = describe_durations([Video("v", "s", 0.0, rows[:2]), Video("w", "s", 0.0, rows[2:])])
    assert (result["min"], result["q25"], result["q50"], result["q75"], result["max"]) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert result["mean"] == 3.0 and result["q98"] == pytest.approx(4.92)
    assert describe_durations([Video("v", "s", 0.0, [])]) == {}


def test_targets_of_a_video():
    """Class indices in the order of `classes`, and times in frames of the video's own rate."""
    video = Video("v", "s", 0.0, [Annotation((1.0, 2.5), "c")])
    (target,) = make_targets([video], {"v": Length(9, 4.0, 2.25)}, CLASSES)
    assert (target.num_frames, target.labels.tolist(), target.segments_frame.tolist()) == (9, [2], [[4.0, 10.0]])
