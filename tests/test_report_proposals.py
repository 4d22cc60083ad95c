"""The page of `sptad inspect`: what is drawn and listed equals what it was given."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sptad_jax.inference.inspect import Part, Tracks
from sptad_jax.report import proposals
from sptad_jax.report.plots import COLOURS, INK
from tests.test_report import HOSTILE, Reader

STEPS = (8, 4, 2)
PARTS = [Part(("backbone_rgb",), ((8, 2, 2, 4),), 1_234_567, 3_500_000_000), Part(("detection_head",), (), 10, 0),
         Part(("detection_head", "stage_0"), ((5, 3), (5, 2)), 10, 1_500_000_000),
         Part((), (), 1_234_577, 5_000_000_000)]  # fmt: skip


def make_tracks(windows=4, stages=3, count=20, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-0.1, 0.8, (windows, stages + 1, count))
    track = np.stack([start, start + rng.uniform(0.05, 0.6, start.shape)], -1).astype(np.float32)
    return Tracks(track, rng.integers(0, 3, (windows, stages, count)), rng.uniform(0, 1, (windows, count)),
                  rng.integers(0, 2, (windows, count)), 0.5 * np.arange(windows), 1.6, 3.1)  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """Figures that are drawn, by the beginning of their description."""
    drawn: dict[str, Figure] = {}
    real = proposals.svg_of

    def keep(fig, description):
        drawn[description] = fig
        return real(fig, description)

    monkeypatch.setattr(proposals, "svg_of", keep)
    return drawn


def bars_of(fig):
    """((start, end), colour) of all horizontal lines, from the top of the picture to its bottom."""
    found = []
    for collection in fig.axes[0].collections:
        for k, line in enumerate(collection.get_segments() if hasattr(collection, "get_segments") else []):
            colour = collection.get_colors()[k % len(collection.get_colors())]
            found.append((line[0][1], tuple(line[:, 0]), to_hex(colour)))
    return [row[1:] for row in sorted(found)]


def test_page_without_a_video(tmp_path):
    """Figures of the table that are not the parts'; a page that pretends to have seen a video; text as markup."""
    initial = np.array([[0.0, 1.0], [0.2, 0.4], [0.6, 0.7]], np.float32), np.array([2, 1, 1])
    path = proposals.write_inspection_report(tmp_path / "new", {"classes": HOSTILE}, PARTS, STEPS, initial, None, ["a"])
    reader = Reader(path)
    assert list(reader.sections) == ["architecture", "initial", "refinement"]
    assert reader.tables["parts"][1:] == [
        ["backbone_rgb", "8x2x2x4", "1,234,567", "3,500.00", "70.0"], ["detection_head", "", "10", "0.00", "0.0"],
        ["stage_0", "5x3, 5x2", "10", "1,500.00", "30.0"], ["total", "", "1,234,577", "5,000.00", "100.0"]]
    assert "level 0 (8 steps): 0; level 1 (4 steps): 2; level 2 (2 steps): 1" in reader.sections["initial"]
    assert "--video VIDEO" in reader.sections["refinement"] and reader.document.count("<svg") == 1
    assert "script" not in reader.tags and len(reader.ids) == len(set(reader.ids)) and not any(
        link.startswith("http") for link in reader.links)  # fmt: skip


def test_page_with_a_video(tmp_path):
    """Windows that are not the best; a chart left out; a class or video named in markup, or in formulas."""
    tracks = make_tracks()
    initial = tracks.segments_norm[0, 0], np.zeros(20, int)
    path = proposals.write_inspection_report(tmp_path, {}, PARTS, STEPS, initial, tracks, ["$a$", HOSTILE], HOSTILE)
    reader = Reader(path)
    assert reader.document.count("<svg") == 1 + 4 + 3 and "script" not in reader.tags
    best = np.argsort(-tracks.score.max(axis=1))[:3]
    headings = re.findall(r"Window from ([\d.]+) to ([\d.]+) s", reader.sections["refinement"])
    assert headings == [(f"{0.5 * w:.1f}", f"{0.5 * w + 1.6:.1f}") for w in best]
    assert "4 windows of 20 proposals" in reader.sections["refinement"] and "$a$" in reader.sections["refinement"]


def test_initial_chart(figures):
    """Segments of another proposal's level or place; the coarsest level below."""
    segments, level = make_tracks().segments_norm[0, 0], np.arange(20) % 3
    proposals._initial_chart(segments, level, STEPS)
    (fig,) = figures.values()
    order = sorted(range(20), key=lambda n: (-level[n], segments[n].mean()))
    bars = bars_of(fig)
    np.testing.assert_allclose([bar for bar, _ in bars], segments[order])
    assert [colour for _, colour in bars] == [COLOURS[level[n]] for n in order]


def test_window_chart(figures):
    """Stages in another order, another window's seconds, the level of a stage given to the segment that it answers."""
    tracks = make_tracks()
    proposals._window_chart(tracks, 2, STEPS, ["first", "second"])
    (fig,) = figures.values()
    bars = bars_of(fig)
    best = sorted(range(20), key=lambda n: -tracks.score[2, n])[:5]
    expected = [(1.0 + 1.6 * tracks.segments_norm[2, stage, n],
                 COLOURS[tracks.level[2, stage, n]] if stage < 3 else INK) for n in best for stage in range(4)]
    np.testing.assert_allclose([bar for bar, _ in bars], [bar for bar, _ in expected], rtol=1e-5)
    assert [colour for _, colour in bars] == [colour for _, colour in expected]
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert names == [f"{['first', 'second'][tracks.label[2, n]]}\n{tracks.score[2, n]:.2f}" for n in best]


@settings(deadline=None, max_examples=8)
@given(windows=st.integers(1, 3), stages=st.integers(1, 4), count=st.integers(1, 12), seed=st.integers(0, 99))
def test_summaries_equal_slow_loops(windows, stages, count, seed):
    """Medians over the wrong axis, displacement in shares of the window, tIoU with the first segment, shares that are
    not of the proposals; a single window, stage or proposal that cannot be drawn."""
    tracks = make_tracks(windows, stages, count, seed)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "svg_of", lambda fig, description: drawn.append(fig) or "")
        proposals._refinement(tracks, STEPS, ["a", "b"], "x")
    moved, agreed, best_levels, all_levels = drawn[:4]
    floor = np.quantile(tracks.score, 0.9)
    rows = [(w, n) for w in range(windows) for n in range(count)]
    for line, chosen in ((0, rows), (1, [(w, n) for w, n in rows if tracks.score[w, n] >= floor])):
        steps, overlaps = [], []
        for w, n in chosen:
            track = [tuple(map(float, segment)) for segment in tracks.segments_norm[w, :, n]]
            steps.append([abs(sum(a) - sum(b)) / 2 * 1.6 for a, b in itertools.pairwise(track)])
            end = track[-1]
            inside = [max(min(a[1], end[1]) - max(a[0], end[0]), 0) for a in track]
            overlaps.append([i / (a[1] - a[0] + end[1] - end[0] - i) for a, i in zip(track, inside)])
        for fig, expected in ((moved, steps), (agreed, overlaps)):
            middle = fig.axes[0].lines[line].get_ydata()
            np.testing.assert_allclose(middle, np.median(expected, axis=0), rtol=1e-4, atol=1e-6)
        shares = [[100 * sum(tracks.level[w, stage, n] == level for w, n in chosen) / len(chosen)
                   for stage in range(stages)] for level in range(3)]  # fmt: skip
        fig = best_levels if line else all_levels
        np.testing.assert_allclose([[bar.get_height() for bar in container] for container in fig.axes[0].containers],
                                   shares)  # fmt: skip
