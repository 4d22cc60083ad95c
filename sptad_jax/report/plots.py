"""Charts as inline SVG: real text in the page's own font, colours that follow its light or dark scheme."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sptad_jax.report.matches import Curve
from sptad_jax.report.style import PALETTE

# Stand-ins that become variables of the page's style sheet once the SVG is drawn.
INK, SOFT, LINE, PAGE = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAGE: "--page"} | {
    light: f"--c{k}" for k, (light, _) in enumerate(PALETTE)
}
COLOURS = [light for light, _ in PALETTE]
_POINTS = 400  # of a drawn curve; longer ones are averaged in bins, which keeps the page small

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sptad",  # the same page from the same run, byte for byte
    "font.size": 10,
    "text.parse_math": False,  # names of metrics come from a file; a dollar sign is a dollar sign
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
styled = matplotlib.rc_context(_RC)  # type: ignore[arg-type]


def axes(width: float = 4.9, height: float = 2.75) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.add_subplot()


def svg_of(fig: Figure, description: str) -> str:
    """The figure as an <svg> element with its own ids, theme colours and a description for screen readers."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has its own fonts
        fig.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    own = "f" + hashlib.sha1((description + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    svg = re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found[0]]})", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average over about `span` points, without the pull to zero at the start. [n] -> [n]."""
    keep = 1.0 - 1.0 / max(span, 1.0)
    out, total, weight = np.empty(len(values)), 0.0, 0.0
    for k, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1.0
        out[k] = total / weight
    return out


def thin(x: np.ndarray, y: np.ndarray, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal runs of neighbours, so that at most `points` are left. [n], [n] -> [m], [m]."""
    size = -(-len(x) // points)
    if size <= 1:
        return x, y
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def series(records: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that hold `key`, float64 [n] each."""
    pairs = [(r["step"], r[key]) for r in records if key in r]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@styled
def curve_chart(records: Sequence[Mapping[str, float]], keys: Mapping[str, str], description: str,
                smoothed: bool = True, gaps: Sequence[int] = ()) -> str:
    """Values over steps, one line per key (key -> name in the legend); the raw values stay as a faint line.

    `gaps` are steps to mark with a dotted line. The axis is logarithmic where positive values span more
    than 30-fold; otherwise it starts at 0 for values that are not smoothed.
    """
    fig, ax = axes()
    lowest, highest = np.inf, -np.inf
    for k, (key, name) in enumerate(keys.items()):
        step, value = series(records, key)
        if not len(step):
            continue
        colour = COLOURS[k % len(COLOURS)]
        trend = smooth(value, len(value) / 40) if smoothed else value
        if smoothed and len(step) > 8:
            ax.plot(*thin(step, value), color=colour, alpha=0.28 if len(keys) == 1 else 0.14, linewidth=0.9)
        ax.plot(*thin(step, trend), color=colour, label=name, marker="o" if len(step) == 1 else "")
        lowest, highest = min(lowest, trend.min()), max(highest, trend.max())
    for gap in gaps:
        ax.axvline(gap, color=COLOURS[1], linestyle=":", linewidth=1.2)
    if 0 < lowest * 30 < highest:
        ax.set_yscale("log")
    elif not smoothed:
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter("")
    _steps(ax)
    if len(keys) > 1:
        fig.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.2)
    return svg_of(fig, description)


def _steps(ax: Axes) -> None:
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


@styled
def map_chart(evaluations: Sequence[Mapping[str, float]]) -> str:
    """mAP of every evaluation during training: the average in bold, each tIoU threshold fainter; in percent."""
    fig, ax = axes(10.2, 2.9)
    keys = sorted({k for r in evaluations for k in r if re.fullmatch(r"eval_map_[\d.]+", k)})
    for k, key in enumerate(keys):
        step, value = series(evaluations, key)
        strength = 0.75 - 0.5 * k / max(len(keys) - 1, 1)
        ax.plot(step, 100 * value, color=COLOURS[6], alpha=strength, linewidth=1.2)
        ax.annotate(f"@{key.removeprefix('eval_map_')}", (step[-1], 100 * value[-1]), xytext=(7, 0), va="center",
                    textcoords="offset points", color=SOFT, fontsize=8.5)
    step, value = series(evaluations, "eval_average_map")
    ax.plot(step, 100 * value, color=COLOURS[0], marker="o", markersize=4.5, linewidth=2.2)
    if len(step):
        ax.annotate(f"average {100 * value[-1]:.1f}", (step[-1], 100 * value[-1]), xytext=(0, 7), ha="right",
                    textcoords="offset points", color=COLOURS[0], fontweight="bold", annotation_clip=False)
    _steps(ax)
    ax.set_ylabel("mAP (%)")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.05)
    return svg_of(fig, "Mean average precision over training")


@styled
def precision_recall_chart(curves: Mapping[str, Curve]) -> str:
    """Precision over recall: pooled over classes in bold, each class as a faint line; in percent."""
    fig, ax = axes()
    for label, curve in curves.items():
        if label and len(curve.score):
            ax.plot(*thin(100 * curve.recall, 100 * curve.precision, 120), color=COLOURS[6], alpha=0.4, linewidth=0.9)
    pooled = curves[""]
    ax.plot(*thin(100 * pooled.recall, 100 * pooled.precision), color=COLOURS[0], linewidth=2.4)
    best = int(pooled.f1.argmax())
    ax.plot(100 * pooled.recall[best], 100 * pooled.precision[best], "o", color=COLOURS[0], markersize=6)
    ax.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 101), ylim=(0, 103))
    return svg_of(fig, "Precision over recall at tIoU 0.5")


@styled
def score_chart(pooled: Curve, threshold: float) -> str:
    """Precision, recall and F1 against the score threshold, pooled over classes; in percent."""
    fig, ax = axes()
    for k, (name, value) in enumerate((("precision", pooled.precision), ("recall", pooled.recall), ("F1", pooled.f1))):
        ax.plot(*thin(pooled.score, 100 * value), color=COLOURS[k], label=name)
    ax.axvline(threshold, color=SOFT, linewidth=1, linestyle="--")
    ax.annotate(f"{threshold:.2f}", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                textcoords="offset points", va="top", color=SOFT, fontsize=9)
    ax.set(xlabel="detections that score at least", ylabel="%", ylim=(0, 103))
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.2)
    return svg_of(fig, "Precision, recall and F1 over the score threshold at tIoU 0.5")


@styled
def tiou_chart(tious: np.ndarray) -> str:
    """Histogram of the best tIoU of detections; the first bar (no overlap at all) stands apart in another colour."""
    fig, ax = axes()
    counts, edges = np.histogram(tious[tious > 0], bins=20, range=(0, 1))
    ax.bar(edges[:-1], counts, width=0.046, align="edge", color=COLOURS[0])
    ax.bar(-0.075, (tious <= 0).sum(), width=0.046, align="edge", color=COLOURS[1])
    ax.set(xlabel="tIoU with the nearest ground truth of the class", ylabel="detections")
    ax.set_xticks([-0.052, 0.2, 0.4, 0.6, 0.8, 1.0], ["none", "0.2", "0.4", "0.6", "0.8", "1"])
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return svg_of(fig, "Histogram of detection tIoU")
