"""Windows and their targets against a slow loop, and against counts published for THUMOS14."""

import collections
import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.config import DataConfig
from sptad_jax.data.windows import (
    VideoTargets,
    index_test_windows,
    index_windows,
    make_window_starts,
    shuffle_labels,
    stretch_window,
)
from sptad_jax.errors import UserError
from tests.reference.window_targets import list_windows


def make_video(num_frames, instances, index=0, name="v"):
    return VideoTargets(name, index, num_frames, np.array([(a, b) for a, b, _ in instances]).reshape(-1, 2),
                        np.array([c for *_, c in instances], np.int32))


def test_window_starts():
    """A lost tail window would hide the end of every video; a doubled one would weigh it twice."""
    assert make_window_starts(1697, 256, 128).tolist() == [*range(0, 1409, 128), 1441]
    assert make_window_starts(100, 256, 128).tolist() == [0]
    assert make_window_starts(256, 256, 128).tolist() == [0]
    assert make_window_starts(257, 256, 128).tolist() == [0, 1]
    assert make_window_starts(512, 256, 128).tolist() == [0, 128, 256]


instances_of = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 50), st.integers(0, 3)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    max_size=6)


@settings(deadline=None, max_examples=150)
@given(num_frames=st.integers(5, 90), instances=instances_of, start=st.integers(0, 58),
       factor=st.floats(0.3, 3.0), rule=st.sampled_from(["paper", "afsd", "all"]))
def test_stretched_window_matches_slow_loop(num_frames, instances, start, factor, rule):
    """Targets of the unstretched window, times stretched the wrong way or about the wrong frame, frames beyond the
    video. The same instances in a video that is itself faster by the factor have the same targets."""
    config = DataConfig(num_frames=32, max_targets=6, window_rule=rule)
    found = stretch_window(make_video(num_frames, instances), start, factor, config, 4)
    if num_frames < 32:
        assert found is None
        return
    factor = min(factor, num_frames / 32)
    first = np.clip(start + 16 - 16 * factor, 0, num_frames - 32 * factor)
    moved = [((a - first) / factor, (b - first) / factor, label) for a, b, label in instances]
    expected = list_windows(32, moved, length=32, stride=1, rule=rule, min_tioa=0.5, action_targets="kept")
    assert (found is None) == (not expected)
    if found:
        frames, index = found
        assert len(frames) == 32 and frames[0] >= 0 and frames[-1] < num_frames
        np.testing.assert_allclose(frames + 0.5, first + (np.arange(32) + 0.5) * factor, atol=0.5 + 1e-9)
        ((_, targets, clip),) = expected
        assert index.valid.sum() == len(targets) and index.num_frames == 32
        np.testing.assert_allclose(index.segments_norm[0][index.valid[0]],
                                   np.array([t[:2] for t in targets]).reshape(-1, 2), atol=1e-5)
        assert index.labels[0][index.valid[0]].tolist() == [t[2] for t in targets]
        assert np.flatnonzero(index.clip_labels[0]).tolist() == sorted(clip)


def test_stretched_window_with_too_many_targets():
    """A training that ends in the middle because a window was drawn that takes in one more instance."""
    video = make_video(90, [(a, a + 8, 0) for a in range(0, 90, 10)])
    config = DataConfig(num_frames=32, max_targets=5)
    assert stretch_window(video, 20, 1.0, config, 1) and stretch_window(video, 20, 2.5, config, 1) is None


@settings(deadline=None, max_examples=150)
@given(
    num_frames=st.integers(5, 90), instances=instances_of, stride=st.integers(1, 40),
    rule=st.sampled_from(["paper", "afsd", "all"]), min_tioa=st.sampled_from([0.0, 0.5, 0.75]),
    action_targets=st.sampled_from(["kept", "any"]))
def test_targets_match_slow_loop(num_frames, instances, stride, rule, min_tioa, action_targets):
    """Catches a wrong comparison (> or >=), wrong rule, wrong truncation, shifted slots or clip labels."""
    config = DataConfig(num_frames=32, max_targets=6, window_rule=rule, min_tioa=min_tioa,
                        action_targets=action_targets)
    index = index_windows([make_video(num_frames, instances, index=7)], config, 4, stride)
    expected = list_windows(num_frames, instances, length=32, stride=stride, rule=rule, min_tioa=min_tioa,
                            action_targets=action_targets)
    assert index.start_frame.tolist() == [start for start, *_ in expected]
    assert set(index.video_index.tolist()) <= {7}
    assert (index.num_frames == min(num_frames, 32)).all()
    for i, (_, targets, clip) in enumerate(expected):
        n = len(targets)
        assert index.valid[i].tolist() == [True] * n + [False] * (6 - n)
        assert index.labels[i, :n].tolist() == [label for *_, label in targets]
        np.testing.assert_allclose(index.segments_norm[i, :n], np.array([t[:2] for t in targets]).reshape(-1, 2),
                                   rtol=1e-6)
        assert set(np.flatnonzero(index.clip_labels[i])) == clip


def test_exactly_half_inside():
    """The paper says more than 0.5, AFSD at least 0.5: an instance cut in the middle is where they differ."""
    video = make_video(64, [(24, 40, 0), (2, 8, 1)])
    for rule, expected in (("paper", [[1]]), ("afsd", [[0, 1]]), ("all", [[1], []])):
        index = index_windows([video], DataConfig(num_frames=32, max_targets=2, window_rule=rule), 2, 32)
        assert [index.labels[i][index.valid[i]].tolist() for i in range(len(index))] == expected


def test_dtypes_and_order():
    """The batch contract: dtypes, and windows in the order of videos and time."""
    config = DataConfig(num_frames=32, max_targets=3)
    videos = [make_video(70, [(0, 70, 1)], 2), make_video(40, [(3, 20, 0)], 0)]
    index = index_windows(videos, dataclasses.replace(config, min_tioa=0.1), 2, 16)
    assert index.video_index.tolist() == [2, 2, 2, 2, 0, 0]
    assert index.start_frame.tolist() == [0, 16, 32, 38, 0, 8]
    kinds = {f.name: getattr(index, f.name).dtype.name for f in dataclasses.fields(index)}
    assert kinds == {"video_index": "int32", "start_frame": "int32", "num_frames": "int32", "labels": "int32",
                     "segments_norm": "float32", "valid": "bool", "clip_labels": "float32"}


def test_too_many_targets():
    """Targets dropped in silence would be trained as background."""
    video = make_video(64, [(i, i + 1, 0) for i in range(40, 45)], name="crowded")
    with pytest.raises(UserError, match=r"'crowded'.*frame 32 holds 5 targets.*max_targets.*num_proposals"):
        index_windows([video], DataConfig(num_frames=32, max_targets=4), 1, 32)


def test_test_windows_have_no_targets():
    """Inference that saw ground truth could leak it; windows without actions must be there all the same."""
    index = index_test_windows([make_video(70, [(0, 5, 0)])], 32, 16)
    assert index.start_frame.tolist() == [0, 16, 32, 38]
    assert index.valid.shape == (4, 0) and index.clip_labels.shape == (4, 0)


def test_shuffle_labels():
    """The control must keep every segment and the multiset of labels, move labels between videos, and be repeatable."""
    videos = [make_video(100, [(i, i + 3, (i + v) % 5) for i in range(20)], v, f"v{v}") for v in range(3)]
    shuffled = shuffle_labels(videos, seed=1)
    before = np.concatenate([v.labels for v in videos])
    after = np.concatenate([v.labels for v in shuffled])
    assert (np.sort(before) == np.sort(after)).all() and (before != after).mean() > 0.5
    assert all((a.segments_frame == b.segments_frame).all() for a, b in zip(videos, shuffled))
    again = np.concatenate([v.labels for v in shuffle_labels(videos, seed=1)])
    assert (after == again).all()
    assert (after != np.concatenate([v.labels for v in shuffle_labels(videos, seed=2)])).any()


@pytest.fixture(scope="module")
def thumos_videos(shared):
    """THUMOS14's validation videos at 10 fps, with the times in seconds that AFSD's files give."""
    folder = shared / "thumos14" / "afsd"
    with open(folder / "val_video_info.csv") as file:
        counts = {row["video"]: int(float(row["sample_count"])) for row in csv.DictReader(file)}
    rows = collections.defaultdict(list)
    with open(folder / "val_Annotation_ours.csv") as file:
        for row in csv.DictReader(file):
            rows[row["video"]].append((float(row["start"]) * 10, float(row["end"]) * 10, 0))
    return [make_video(count, rows[name], i, name) for i, (name, count) in enumerate(counts.items())]


@pytest.mark.parametrize(
    ("rule", "num_windows", "num_targets"), [("paper", 8770, 23475), ("afsd", 7877, 22559), ("all", 12530, 23475)])
def test_thumos14_counts(thumos_videos, rule, num_windows, num_targets):
    """The number of windows makes an epoch: counts taken independently from the public annotation files."""
    index = index_windows(thumos_videos, DataConfig(window_rule=rule), 20, 30)
    assert (len(index), int(index.valid.sum())) == (num_windows, num_targets)
