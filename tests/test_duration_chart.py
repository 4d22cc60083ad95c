"""Figure 4 and duration histograms: shares against obvious loops, and against what the paper says of the real data."""

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from data_prep.contact_sheet import use_style
from data_prep.duration_chart import (
    _draw_seconds,
    _draw_shares,
    count_shares,
    draw_durations,
    draw_figure4,
    main,
    measure_shares,
)
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.windows import VideoTargets
from tests.reference.tiny_dataset import make_tiny_dataset


def make_video(num_frames, segments_frame):
    segments = np.array(segments_frame, np.float64).reshape(-1, 2)
    return VideoTargets("v", 0, num_frames, segments, np.arange(len(segments), dtype=np.int32))


@st.composite
def any_video(draw):
    num_frames = draw(st.integers(1, 1500))
    edges = st.integers(0, 2 * num_frames)  # half frames
    pairs = draw(st.lists(st.tuples(edges, edges).filter(lambda pair: pair[0] != pair[1]), max_size=6))
    return make_video(num_frames, [(min(p) / 2, max(p) / 2) for p in pairs])


@given(st.lists(any_video(), min_size=1, max_size=4), st.sampled_from([16, 64, 256]))
def test_shares_against_loops(videos, length):
    """Against the paper's words in plain Python: windows at half overlap, tIoA > 0.5, length within the window."""
    whole, windowed = [], []
    for video in videos:
        starts = {0} | {s for s in range(0, video.num_frames, length // 2) if s + length <= video.num_frames}
        starts.add(max(video.num_frames - length, 0))  # the tail
        for start, end in video.segments_frame:
            whole.append((end - start) / video.num_frames)
            for low in starts:
                inside = max(0.0, min(end, low + length) - max(start, low))
                if inside / (end - start) > 0.5:
                    windowed.append(inside / length)
    np.testing.assert_allclose(np.sort(measure_shares(videos)), np.sort(whole), atol=1e-12)
    np.testing.assert_allclose(np.sort(measure_shares(videos, length)), np.sort(windowed), atol=1e-6)


@given(st.lists(st.floats(0, 1, exclude_min=True), max_size=40))
def test_counts_against_a_loop(shares):
    """Catches bins that lose the ends: 100 % belongs to the last interval, and everything adds up to 1."""
    expected = [0.0] * 20
    for share in shares:
        k = next((k for k in range(20) if share < np.linspace(0, 1, 21)[k + 1]), 19)
        expected[k] += 1 / len(shares)
    np.testing.assert_allclose(count_shares(np.array(shares)), expected, atol=1e-12)


def test_nothing_to_count():
    """No video, or videos without an instance: empty answers and empty histograms."""
    for videos in ([], [make_video(50, [])]):
        assert len(measure_shares(videos)) == len(measure_shares(videos, 16)) == 0
    assert (count_shares(np.zeros(0)) == 0).all()


def test_bars_are_the_counts():
    """The drawn bars against numpy on known durations: heights in percent, at the right places, nothing lost."""
    shares = np.array([0.01, 0.02, 0.26, 1.0])
    seconds = {"a": np.array([0.2, 0.2, 3.0, 59.0]), "b": np.array([10.0])}
    with use_style():
        left, right = Figure().subplots(1, 2)
        _draw_shares(left, {"a": shares, "b": shares[:1]}, "")
        _draw_seconds(right, seconds)
    heights = {round(bar.get_x()): bar.get_height() for bar in left.patches[:20] if bar.get_height()}
    assert heights == {0: 50, 25: 25, 95: 25}
    assert [bar.get_height() for bar in left.patches[20:]] == [100] + [0] * 19
    bins = len(right.patches) // 2
    for k, durations in enumerate(seconds.values()):
        bars = right.patches[k * bins:(k + 1) * bins]
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
        for bar in bars:  # the bar stands in its bin: bins have a ratio of 10^(1/6)
            low = bar.get_x()
            near = (durations > low / 10 ** (1 / 6)) & (durations < low * 10 ** (1 / 6))
            assert not bar.get_height() or near.any()


@pytest.mark.parametrize("seconds", [[], [0.0], [5.0], [1.0, 10.0], [1e-4, 1e5], [0.3] * 5, [0.2154434690031883]])
def test_any_durations(seconds):
    """No instance, one, equal ones, powers of ten, extremes, just below an edge: each is in a bar, and no warning."""
    with use_style():
        ax = Figure().subplots()
        _draw_seconds(ax, {"a": np.array(seconds), "b": np.zeros(0)})
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(100 if seconds else 0)


def test_pictures(tmp_path):
    """The stated sizes, and not blank; odd names of subsets do not warn."""
    dataset = open_dataset(make_tiny_dataset(tmp_path))
    draw_durations(dataset, tmp_path / "durations.png")
    picture = matplotlib.image.imread(tmp_path / "durations.png")
    assert picture.shape[:2] == (360, 1300) and all(part.std() > 0.1 for part in np.split(picture[:, :1299], 3, axis=1))
    dataset.info["max_frames"] = 768  # the whole video is the window: one panel less
    draw_durations(dataset, tmp_path / "fewer.png")
    assert (matplotlib.image.imread(tmp_path / "fewer.png") != picture).any()
    draw_figure4(tmp_path / "figure4.png", {"_hidden $x$ 跑": np.array([0.1, 0.9]), "none": np.zeros(0)})
    picture = matplotlib.image.imread(tmp_path / "figure4.png")
    assert picture.shape[:2] == (420, 900) and picture.std() > 0.1


def test_figure4_of_the_real_data(shared, tmp_path, capsys):
    """Paper 4.2: on THUMOS14 "over 80%" of the instances take less than 25 % of a clip and hardly any is long, while
    ActivityNet is "more even". Catches the wrong unit, windows or lengths."""
    code = main(["--thumos14", str(shared / "thumos14"), "--activitynet13", str(shared / "activitynet13"), "--output",
                 str(tmp_path / "figure4.png")])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and matplotlib.image.imread(tmp_path / "figure4.png").shape[:2] == (420, 900)
    thumos, anet = (float(line.split(", ")[1].split()[0]) for line in lines[:2])
    assert 80 < thumos < 85 and 40 < anet < 50


def test_bad_arguments(tmp_path, capsys):
    """Nothing to draw, a folder that is not there, an output that cannot be: one sentence, exit code 2."""
    for argv in ([], ["--thumos14", str(tmp_path / "absent")], ["--activitynet13", str(tmp_path)]):
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith("error: ")
