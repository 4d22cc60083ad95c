"""The drawn error analysis: bars and curves equal the numbers, labels stay apart, nothing breaks the page."""

import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from sptad_jax.evaluation.analysis import TYPES, analyse
from sptad_jax.report import diagnosis
from sptad_jax.report.page import write_analysis_report
from tests.reference.fake_run import dataset
from tests.test_report import Reader

CHARTS = (diagnosis.profile_chart, diagnosis.gain_chart, diagnosis.sensitivity_chart, diagnosis.recall_chart,
          diagnosis.proposal_chart)


def long_actions():
    """Three classes in videos of minutes, in every bucket of ActivityNet, with many instances in each."""
    rng = np.random.default_rng(2)
    truth, found = {}, {}
    for k in range(1200):
        duration = float(rng.uniform(60, 400))
        segments = [sorted(rng.uniform(0, duration, 2).tolist()) for _ in range(int(rng.choice([1, 1, 3, 7, 10])))]
        rows = [{"label": "abc"[k % 3], "segment": segment} for segment in segments]
        truth[f"v{k}"] = {"duration": duration, "annotations": rows}
        shifted = [sorted(row["segment"] + rng.normal(0, 9, 2)) for row in rows]
        found[f"v{k}"] = [row | {"score": float(rng.random()), "segment": s} for row, s in zip(rows, shifted)]
    return analyse({"database": truth}, {"results": found}, [0.5 + 0.05 * k for k in range(10)])


def short_actions():
    database, results = dataset(np.random.default_rng(7))
    return analyse({"database": database}, {"results": results}, [0.3, 0.4, 0.5, 0.6, 0.7], "test")


def nothing_found():
    return analyse({"database": {"v": {"annotations": [{"label": "a", "segment": [0, 9]}]}}}, {"results": {}}, [0.5])


@pytest.fixture
def draw(monkeypatch):
    """A chart as a matplotlib figure."""
    def figure(chart, analysis):
        part = {"profile": "errors", "gain": "errors", "proposal": "proposals"}.get(chart.__name__.split("_")[0])
        with monkeypatch.context() as patch:
            patch.setattr(diagnosis, "svg_of", lambda fig, description: fig)
            return chart(analysis[part] if part else analysis)

    return figure


def test_bars_of_the_errors_are_the_numbers(draw):
    """A share under the wrong cause or bin, a stack that does not add up, a gain beside the wrong error."""
    analysis = short_actions()
    errors = analysis["errors"]
    ax = draw(diagnosis.profile_chart, analysis).axes[0]
    stacks = dict(zip((bars.get_label() for bars in ax.containers), ax.containers))
    for name in TYPES:
        heights = [bar.get_height() for bar in stacks[name.replace("_", " ")]]
        assert heights == pytest.approx([100 * share for share in errors["profile"]["average"][name]])
    tops = [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]
    assert tops == pytest.approx([100] * len(errors["num_detections"]))
    ax = draw(diagnosis.gain_chart, analysis).axes[0]
    shown = {label.get_text().replace(" ", "_"): bar.get_width()
             for label, bar in zip(ax.get_yticklabels(), ax.containers[0])}
    assert shown == {name: pytest.approx(100 * gain) for name, gain in errors["gain"]["average"].items()}
    colours = {c.get_label(): c[0].get_facecolor() for c in stacks.values()}
    assert [bar.get_facecolor() for bar in ax.containers[0]] == [colours[n.replace("_", " ")] for n in TYPES[1:]]


def test_bars_of_the_kinds_are_the_numbers(draw):
    """A bar in the wrong panel, under another bucket's name or threshold, or without its dashed line."""
    analysis = long_actions()
    kinds = analysis["characteristics"]
    assert [len(buckets) for buckets in kinds.values()] == [5, 5, 4]
    for ax, buckets in zip(draw(diagnosis.sensitivity_chart, analysis).axes, kinds.values(), strict=True):
        assert [bar.get_height() for bar in ax.patches] == pytest.approx(
            [100 * b["map_n"]["average"] for b in buckets])
        assert ax.lines[0].get_ydata() == pytest.approx([100 * analysis["map_n"]["average"]] * 2)
        names = [label.get_text().split("\n") for label in ax.get_xticklabels()]
        assert [[n[0], n[2]] for n in names] == [[b["name"], f"{b['count']:,}"] for b in buckets]
    for ax, buckets in zip(draw(diagnosis.recall_chart, analysis).axes, kinds.values(), strict=True):
        for bars, key in zip(ax.containers, ("0.5", "0.75", "0.95"), strict=True):
            assert bars.get_label() == f"tIoU {key}"
            assert [bar.get_height() for bar in bars] == pytest.approx([100 * b["recall"][key] for b in buckets])


def test_curve_of_the_proposals_is_the_numbers(draw):
    """Axes swapped, a share shown as percent, the average drawn where a threshold should be."""
    proposals = short_actions()["proposals"]
    lines = draw(diagnosis.proposal_chart, {"proposals": proposals}).axes[0].lines
    wanted = [*(proposals["recall"][key] for key in ("0.95", "0.75", "0.5")), proposals["average_recall"]]
    for line, values in zip(lines, wanted, strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, 101))
        np.testing.assert_allclose(line.get_ydata(), 100 * np.array(values))


@pytest.mark.parametrize("make", [long_actions, short_actions, nothing_found])
def test_labels_stay_apart(draw, make, monkeypatch):
    """Texts drawn over each other: names of buckets and curves, values of bars, legends."""
    analysis, drawn, original = make(), [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, *args: drawn.append(self) or original(self, *args))
    for chart in CHARTS:
        if not analysis["errors"]["num_detections"] and chart in CHARTS[:2]:
            continue  # a sentence stands there
        fig = draw(chart, analysis)
        fig.draw_without_rendering()  # lays it out
        drawn.clear()
        FigureCanvasAgg(fig).draw()
        texts = [t for t in dict.fromkeys(drawn) if t.get_visible() and t.get_text().strip()]
        boxes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in texts]
        assert len(boxes) > 8
        for (a, left), (b, right) in itertools.combinations(boxes, 2):
            assert not left.overlaps(right), (chart.__name__, a, b)


@pytest.mark.parametrize("name, above, up_to, words", [
    ("coverage", None, 0.02, "≤ 2"), ("coverage", 0.2, 0.4, "20–40"), ("coverage", 0.8, None, "> 80"),
    ("length", None, 3, "≤ 3"), ("length", 30, 60, "30–60"), ("num_instances", None, 1, "1"),
    ("num_instances", 1, 4, "2–4"), ("num_instances", 8, None, "> 8"),
])  # fmt: skip
def test_ranges_by_hand(name, above, up_to, words):
    """Shares printed as such, or a number of instances that belongs to two buckets."""
    assert diagnosis.bucket_range(name, {"above": above, "up_to": up_to}) == words


def test_page_stands_alone(tmp_path):
    """A page of its own without its numbers, with links elsewhere, or with colours that do not follow the scheme."""
    analysis = short_actions()
    reader = Reader(write_analysis_report(tmp_path / "new" / "folder", analysis))
    assert tuple(reader.sections) == ("errors", "kinds", "proposals") and reader.document.count("<figure>") == 5
    assert "subset test: 62 instances, 230 detections" in reader.document
    head, row = reader.tables["proposal-table"]
    recall = analysis["proposals"]["average_recall"]
    assert head == ["AN", "1", "5", "10", "50", "100", "AUC"]
    assert row[1:] == [f"{100 * v:.1f}" for v in [*(recall[k - 1] for k in (1, 5, 10, 50, 100)),
                                                  analysis["proposals"]["auc"]]]
    gain = max(analysis["errors"]["gain"]["average"].items(), key=lambda item: item[1])
    assert f"Most is lost to {gain[0]} errors" in reader.sections["errors"]
    assert f"by {100 * gain[1]:.1f} points" in reader.sections["errors"]
    assert all(link.startswith("#") for link in reader.links) and len(reader.ids) == len(set(reader.ids))
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", reader.document))
    assert used - {"--v"} <= set(re.findall(r"(--[a-z0-9]+):", reader.document)) and "#01020" not in reader.document
    empty = Reader(write_analysis_report(tmp_path, nothing_found()))
    assert "no detection of a class" in empty.sections["errors"] and "all videos: 1 instance, 0" in empty.document


@pytest.mark.parametrize("key", ["errors", "characteristics", "recall", "proposals", "map_n"])
@pytest.mark.parametrize("value", [None, {"average": "x"}])
def test_broken_parts_are_tolerated(key, value):
    """One part of another form that costs the whole page; a part that is fine must still be drawn."""
    analysis = short_actions() | {key: value}
    parts = {name: html for name, _, html in diagnosis.sections(json.loads(json.dumps(analysis)))}
    broken = {name for name, html in parts.items() if "not of the expected form" in html}
    assert broken <= {"errors": {"errors"}, "proposals": {"proposals"}}.get(key, {"kinds"})
    assert broken
