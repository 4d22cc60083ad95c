"""The sections drawn from analysis.json: false positives, kinds of action, average recall of proposals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sptad_jax.report import style
from sptad_jax.report.plots import COLOURS, PAGE, SOFT, axes, styled, svg_of

# True positives in green, then the errors from near misses to far ones.
_TYPE_COLOURS = {"true_positive": 2, "double_detection": 5, "wrong_label": 0, "localisation": 4, "confusion": 3,
                 "background": 6}
_TITLES = {"coverage": "share of the video (%)", "length": "length (s)", "num_instances": "instances in the video"}
_SHOWN_AN = (1, 5, 10, 50, 100)


def _words(name: str) -> str:
    return name.replace("_", " ")


@styled
def profile_chart(errors: dict[str, Any]) -> str:
    """Stacked bars: what the detections of each rank are, in percent; a bin is as long as the ground truth."""
    fig, ax = axes()
    bottom = np.zeros(len(errors["num_detections"]))
    places = np.arange(1, len(bottom) + 1)
    for name, colour in _TYPE_COLOURS.items():
        height = 100 * np.array(errors["profile"]["average"][name], np.float64)
        ax.bar(places, height, bottom=bottom, width=0.86, color=COLOURS[colour], edgecolor=PAGE, linewidth=0.5,
               label=_words(name))
        bottom = bottom + height
    ax.set_xticks(places, [f"{k}G" for k in places])
    ax.set(xlabel="rank of the detections of a class", ylabel="%", ylim=(0, 101))
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1, handleheight=0.8)
    return svg_of(fig, "False positives by cause and rank")


@styled
def gain_chart(errors: dict[str, Any]) -> str:
    """Bars: points of mAP_N that the absence of one kind of error would bring."""
    fig, ax = axes()
    names = [name for name in _TYPE_COLOURS if name != "true_positive"]
    values = [100 * float(errors["gain"]["average"][name]) for name in names]
    bars = ax.barh(range(len(names)), values, height=0.68, color=[COLOURS[_TYPE_COLOURS[name]] for name in names])
    ax.bar_label(bars, [f"{value:+.1f}" for value in values], padding=4, fontsize=9)
    ax.set_yticks(range(len(names)), [_words(name) for name in names])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    ax.margins(x=0.14)
    ax.set_xlim(left=0, right=max(ax.get_xlim()[1], 1))
    ax.set_xlabel("gain of average mAP_N (points)")
    return svg_of(fig, "Gain of mAP without one kind of error")


def _panels(characteristics: dict[str, list[dict[str, Any]]], ylabel: str) -> tuple[Figure, list[Axes]]:
    """A panel for each characteristic, as wide as it has buckets; below, their names, ranges and sizes."""
    fig = Figure(figsize=(10.2, 3.1), layout="constrained")
    widths = [len(buckets) + 0.4 for buckets in characteristics.values()]
    panels = list(fig.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0])
    for ax, (name, buckets) in zip(panels, characteristics.items()):
        ax.set_title(_TITLES[name], loc="left", fontsize=9.5)
        labels = [f"{b['name']}\n{bucket_range(name, b)}\n{b['count']:,}" for b in buckets]
        ax.set_xticks(range(len(buckets)), labels, fontsize=8.5)
        ax.set_xlim(-0.7, len(buckets) - 0.3)
    panels[0].set_ylabel(ylabel)
    return fig, panels


def bucket_range(characteristic: str, bucket: dict[str, Any]) -> str:
    """Edges 3 and 6 s -> "3–6", 0.02 and 0.04 of the video -> "2–4"; above 1 and up to 4 instances -> "2–4"."""
    scale = 100 if characteristic == "coverage" else 1
    low, high = (None if bucket[edge] is None else scale * bucket[edge] for edge in ("above", "up_to"))
    if high is None:
        return f"> {low:g}"
    if low is None:
        return f"≤ {high:g}" if high > 1 else f"{high:g}"
    return f"{low + (characteristic == 'num_instances'):g}–{high:g}"


@styled
def sensitivity_chart(analysis: dict[str, Any]) -> str:
    """mAP_N of each bucket in percent, and of everything as a dashed line."""
    characteristics, base = analysis["characteristics"], 100 * float(analysis["map_n"]["average"])
    fig, panels = _panels(characteristics, "average mAP_N (%)")
    highest = base
    for k, (ax, buckets) in enumerate(zip(panels, characteristics.values())):
        heights = [100 * float(b["map_n"]["average"]) for b in buckets]
        highest = max(highest, *heights)
        ax.axhline(base, color=SOFT, linewidth=1, linestyle="--", zorder=0.8)
        bars = ax.bar(range(len(buckets)), heights, width=0.72, color=COLOURS[(0, 2, 3)[k % 3]])
        ax.bar_label(bars, fmt="{:.1f}", padding=2, fontsize=8.5,
                     bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 0.6})
    panels[0].set_ylim(0, 1.12 * highest or 1)
    panels[-1].annotate(f"all {base:.1f}", (1, base), xycoords=("axes fraction", "data"), xytext=(3, 0), va="center",
                        textcoords="offset points", color=SOFT, fontsize=9, annotation_clip=False)
    return svg_of(fig, "mAP by kind of action")


@styled
def recall_chart(analysis: dict[str, Any]) -> str:
    """Recall in each bucket, in percent, at the lowest, the middle and the highest tIoU."""
    characteristics = analysis["characteristics"]
    tious = [key for key in analysis["recall"] if key != "average"]
    tious = list(dict.fromkeys((tious[0], tious[len(tious) // 2], tious[-1])))
    fig, panels = _panels(characteristics, "recall (%)")
    width = 0.8 / len(tious)
    for ax, buckets in zip(panels, characteristics.values()):
        for k, key in enumerate(tious):
            places = np.arange(len(buckets)) + (k - (len(tious) - 1) / 2) * width
            heights = [100 * float(b["recall"][key]) for b in buckets]
            ax.bar(places, heights, width=0.9 * width, color=COLOURS[k], label=f"tIoU {key}")
    panels[0].set_ylim(0, 103)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(tious), columnspacing=1.2,
               handlelength=1.2)
    return svg_of(fig, "Recall by kind of action")


@styled
def proposal_chart(proposals: dict[str, Any]) -> str:
    """Average recall over the average number of proposals a video in bold, some tIoU thresholds fainter; percent."""
    fig, ax = axes()
    number = np.array(proposals["average_number"], np.float64)
    place = -np.inf
    for key in ("0.95", "0.75", "0.5"):
        recall = 100 * np.array(proposals["recall"][key], np.float64)
        place = max(recall[-1], place + 7)  # so that the names of curves that end together do not overlap
        ax.plot(number, recall, color=COLOURS[6], alpha=0.6, linewidth=1.2)
        ax.annotate(f"@{key}", (number[-1], place), xytext=(4, 0), va="center", textcoords="offset points",
                    color=SOFT, fontsize=8.5, annotation_clip=False)
    ax.plot(number, 100 * np.array(proposals["average_recall"], np.float64), color=COLOURS[0], linewidth=2.4)
    ax.set(xlabel="average number of proposals a video (AN)", ylabel="recall (%)", ylim=(0, 103), xlim=(0, number[-1]))
    return svg_of(fig, "Average recall over the average number of proposals")


def sections(analysis: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The parts of a page as (id, heading, HTML); a sentence stands in for what is not there or not as expected."""
    return [
        ("errors", "False positives", _drawn(_errors, analysis)),
        ("kinds", "Length, coverage and number of actions", _drawn(_kinds, analysis)),
        ("proposals", "Average recall of proposals", _drawn(_proposals, analysis)),
    ]


def _drawn(draw: Callable[[dict[str, Any]], str], analysis: dict[str, Any]) -> str:
    if not analysis:
        return style.empty("The analysis of errors appears here after the evaluation.")
    try:
        return draw(analysis)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # whatever another program may have written
        return style.empty("analysis.json is not of the expected form; evaluate again to write it anew.")


def _errors(analysis: dict[str, Any]) -> str:
    errors = analysis["errors"]
    if not errors["num_detections"]:
        return style.empty("There is no detection of a class of the ground truth in these videos.")
    gain = errors["gain"]["average"]
    worst = max(gain, key=lambda name: gain[name])
    cost = (f"Most is lost to {_words(worst)} errors: without them average mAP_N would rise from "
            f"{style.percent(errors['map_n']['average'])} by {style.percent(gain[worst])} points.")
    figures = [
        style.figure(profile_chart(errors), "What the best detections are",
                     "Of a class with G instances, 1G are its G best detections, 2G the next G, and so on."),
        style.figure(gain_chart(errors), "What each kind of error costs",
                     cost if gain[worst] > 0 else "Without any one kind of error average mAP_N would be the same."),
    ]
    note = (
        "Each detection that claims no instance is judged by its nearest instance: a tIoU above the threshold makes it "
        "a double detection (right class) or a wrong label, one above 0.1 a localisation error (right class) or a "
        "confusion, anything less background. Shares and gains are means over the thresholds of the evaluation "
        "(method: Alwassel et al., ECCV 2018)."
    )
    return f'<p class="note">{note}</p><div class="grid">{"".join(figures)}</div>'


def _kinds(analysis: dict[str, Any]) -> str:
    note = (
        "mAP_N counts every class, and every kind of action, as if it had the average number of instances, so that "
        "rare and frequent ones can be compared. Below each bar: its range and its number of instances."
    )
    figures = [
        style.figure(_scrolled(sensitivity_chart(analysis)), "mAP by kind of action",
                     "Mean over the thresholds of the evaluation; dashed: all instances together."),
        style.figure(_scrolled(recall_chart(analysis)), "Recall by kind of action",
                     "Share of instances found with the right class by detections at whose rank precision is still "
                     "above 5 %."),
    ]
    return f'<p class="note">{note}</p><div class="grid" style="grid-template-columns: 1fr">{"".join(figures)}</div>'


def _scrolled(svg: str) -> str:
    """A wide chart, which a narrow window scrolls instead of shrinking it."""
    return f'<div class="wide">{svg}</div>'


def _proposals(analysis: dict[str, Any]) -> str:
    proposals = analysis["proposals"]
    by_number = dict(zip(proposals["average_number"], proposals["average_recall"]))
    shown: Sequence[float] = [an for an in _SHOWN_AN if an in by_number]
    table = (
        '<div class="scroll"><table class="ruled" id="proposal-table"><thead><tr><th>AN</th>'
        + "".join(f'<th class="n">{an:g}</th>' for an in shown)
        + '<th class="n">AUC</th></tr></thead><tbody><tr><th scope="row">AR (%)</th>'
        + "".join(f'<td class="n">{style.percent(by_number[an])}</td>' for an in shown)
        + f'<td class="n"><b>{style.percent(proposals["auc"])}</b></td></tr></tbody></table></div>'
    )
    chart = style.figure(proposal_chart(proposals), "Average recall of proposals",
                         "Classes ignored; mean over tIoU 0.5 to 0.95 in bold, single thresholds in grey. AUC is the "
                         "area below the curve.")
    return f'<div class="grid"><div>{chart}</div><div>{table}</div></div>'
