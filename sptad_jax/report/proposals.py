"""The page of `sptad inspect`: the architecture as a table, and where the proposals look."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sptad_jax import segments
from sptad_jax.report import style
from sptad_jax.report.plots import COLOURS, INK, LINE, PAGE, SOFT, axes, styled, svg_of
from sptad_jax.report.style import text

if TYPE_CHECKING:  # the page needs no network
    from sptad_jax.inference.inspect import Part, Tracks

_WINDOWS = 3  # drawn, the best
_PROPOSALS = 5  # of each
_BEST = 0.1  # share of the proposals that summaries call the best-scoring
_LABEL = 22  # characters of a class name on an axis


def write_inspection_report(
    output_dir: str | pathlib.Path,
    facts: Mapping[str, str],
    parts: Sequence["Part"],
    level_steps: Sequence[int],
    initial: tuple[np.ndarray, np.ndarray],
    tracks: "Tracks | None",
    classes: Sequence[str],
    video: str = "",
) -> pathlib.Path:
    """Writes output_dir/index.html and returns its path.

    Args:
      facts: what is known of the checkpoint, name -> value.
      parts: as `inspect.describe` gives them.
      level_steps: time steps of the pyramid's levels, finest first.
      initial: learnt segments float32 [N, 2] as share of the window, and int [N], the levels that they are read from.
      tracks: of one video, or None.
      classes: names in the order of the model.
      video: its name.
    """
    sections = [
        ("architecture", "Architecture", _facts(facts) + _architecture(parts)),
        ("initial", "Where the proposals look: at first", _initial(*initial, level_steps)),
        ("refinement", "Where the proposals look: stage by stage",
         _refinement(tracks, level_steps, classes, video) if tracks else style.empty(
             "How each stage moves the proposals depends on the input. Give a video to see it: sptad inspect "
             "CHECKPOINT --report DIR --video VIDEO.")),
    ]  # fmt: skip
    total = parts[-1]
    subtitle = f"{total.parameters / 1e6:.2f} million parameters, {total.flops / 1e9:,.1f} GFLOP a window"
    document = style.page("Inside the detector", subtitle, sections, "")
    return style.write_page(pathlib.Path(output_dir) / "index.html", document)


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f'<tr><th scope="row">{text(name)}</th><td class="value">{text(value)}</td></tr>'
                   for name, value in facts.items())  # fmt: skip
    return f'<table class="ruled"><tbody>{rows}</tbody></table>'


def _architecture(parts: Sequence["Part"]) -> str:
    from sptad_jax.inference.inspect import mflop_text, shape_text

    rows = []
    for part in parts:
        share = part.flops / max(parts[-1].flops, 1)
        name = text(part.path[-1] if part.path else "total")
        name = f"<b>{name}</b>" if len(part.path) < 2 else name
        rows.append(
            f'<tr><th scope="row" style="padding-left: {11 + 20 * max(len(part.path) - 1, 0)}px">{name}</th>'
            f'<td>{text(shape_text(part))}</td><td class="n">{part.parameters:,}</td>'
            f'<td class="n">{mflop_text(part)}</td>'
            f'<td class="heat" style="--v: {share:.3f}">{100 * share:.1f}</td></tr>'
        )
    note = ("Outputs are those of one window. A multiply-add of a convolution or matrix product counts as two "
            "operations, taps that fall on padding included; what is done element by element is not counted, hence the "
            "0 of SoI Align, which interpolates.")  # fmt: skip
    return (f'<h3>Parts</h3><p class="note">{note}</p><div class="scroll"><table class="ruled" id="parts"><thead><tr>'
            '<th>part</th><th>output</th><th class="n">parameters</th><th class="n">MFLOP</th><th>% of all</th></tr>'
            f'</thead><tbody>{"".join(rows)}</tbody></table></div>')  # fmt: skip


def _initial(segments_norm: np.ndarray, level: np.ndarray, level_steps: Sequence[int]) -> str:
    drawing = style.figure(
        _initial_chart(segments_norm, level, level_steps), "Learnt initial segments",
        f"Each bar is one of the {len(level)} proposals, whatever the video; the dot is its centre. The shaded stretch "
        "is the window. The colour says from which level of the pyramid the first stage reads it (eq. 1).")  # fmt: skip
    counts = np.bincount(level, minlength=len(level_steps))
    listed = "; ".join(f"{name}: {count}" for name, count in zip(_level_names(level_steps), counts))
    return f'{drawing}<p class="note">Proposals by level: {text(listed)}.</p>'


def _refinement(tracks: "Tracks", level_steps: Sequence[int], classes: Sequence[str], video: str) -> str:
    best = tracks.score >= np.quantile(tracks.score, 1 - _BEST)
    shown = np.argsort(-tracks.score.max(axis=1), kind="stable")[:_WINDOWS]
    num_windows, num_proposals = tracks.score.shape
    summaries = [
        style.figure(_movement_chart(tracks, best), "How far a stage moves the centre",
                     "Between its input and its output, in seconds. Line: median; band: the middle half."),
        style.figure(_agreement_chart(tracks, best), "How soon the answer is reached",
                     "tIoU with the segment of the last stage. Line: median; band: the middle half."),
        style.figure(_level_chart(tracks.level[best.nonzero()[0], :, best.nonzero()[1]], level_steps, "best-scoring"),
                     "Level that each stage reads from", "The tenth of the proposals with the highest scores."),
        style.figure(_level_chart(tracks.level.swapaxes(1, 2).reshape(-1, tracks.level.shape[1]), level_steps, "all"),
                     "Level that each stage reads from", "All proposals."),
    ]  # fmt: skip
    drawings = [
        f"<h3>Window from {tracks.start_sec[window]:.1f} to {tracks.start_sec[window] + tracks.window_sec:.1f} s</h3>"
        f'<div class="wide">{_window_chart(tracks, int(window), level_steps, classes)}</div>'
        for window in shown
    ]
    intro = (f"{video} ({style.duration(tracks.duration_sec)}): {style.plural(num_windows, 'window')} of "
             f"{num_proposals} proposals. The best-scoring are the tenth with the highest scores.")  # fmt: skip
    return (f'<p class="note">{text(intro)}</p><div class="grid">{"".join(summaries)}</div>'
            '<p class="note">Below, the best-scoring proposals of the windows that hold the very best. From top to '
            "bottom: the segment that each stage reads, in the colour of the level that it reads from, and the answer, "
            f"dark; the thin line joins the centres.</p>{''.join(drawings)}")  # fmt: skip


@styled
def _initial_chart(segments_norm: np.ndarray, level: np.ndarray, level_steps: Sequence[int]) -> str:
    """Bars over the window, the coarsest level on top, by centre within a level."""
    centre = segments_norm.mean(axis=1)
    order = np.lexsort((centre, -level))
    fig, ax = axes(10.2, 1.3 + 0.06 * len(order))
    ax.axvspan(0, 1, color=LINE, alpha=0.45, linewidth=0)
    rows, colours = np.arange(len(order)), [COLOURS[k % len(COLOURS)] for k in level[order]]
    start, end = segments_norm[order].T
    ax.hlines(rows, start, end, colors=colours, linewidth=2.6)
    ax.scatter(centre[order], rows, s=9, color=colours, edgecolors=PAGE, linewidths=0.8, zorder=3)
    ax.set(xlabel="share of the window", ylim=(len(order) - 0.2, -0.8), yticks=[])
    ax.grid(visible=False)
    _level_legend(ax, np.unique(level), level_steps)
    return svg_of(fig, "Initial segments of the proposals over the window")


@styled
def _window_chart(tracks: "Tracks", window: int, level_steps: Sequence[int], classes: Sequence[str]) -> str:
    """The best proposals of one window, a group of S + 1 bars each; seconds of the video along x."""
    chosen = np.argsort(-tracks.score[window], kind="stable")[:_PROPOSALS]
    start_sec = tracks.start_sec[window]
    bars = start_sec + tracks.segments_norm[window][:, chosen] * tracks.window_sec  # [S + 1, n, 2]
    level, num_bars = tracks.level[window][:, chosen], len(bars)
    pitch = num_bars + 1.5
    fig, ax = axes(10.2, 1.1 + 0.1 * pitch * len(chosen))
    ax.axvspan(start_sec, start_sec + tracks.window_sec, color=LINE, alpha=0.45, linewidth=0)
    for k in range(len(chosen)):
        rows = k * pitch + np.arange(num_bars)
        colours = [COLOURS[i % len(COLOURS)] for i in level[:, k]]
        start, end = bars[:, k].T
        ax.hlines(rows[:-1], start[:-1], end[:-1], colors=colours, linewidth=3)
        ax.hlines(rows[-1:], start[-1:], end[-1:], colors=INK, linewidth=4)
        ax.plot(bars[:, k].mean(axis=1), rows, color=SOFT, linewidth=0.9, marker="o", markersize=2.4)
    names = [f"{_short(classes[tracks.label[window, n]])}\n{tracks.score[window, n]:.2f}" for n in chosen]
    ax.set_yticks(np.arange(len(chosen)) * pitch + (num_bars - 1) / 2, names)
    margin = 0.1 * tracks.window_sec  # what lies farther outside is cut
    ax.set(xlabel="seconds", xlim=(start_sec - margin, start_sec + tracks.window_sec + margin),
           ylim=(len(chosen) * pitch - 0.9, -1.1))  # fmt: skip
    ax.grid(visible=False)
    _level_legend(ax, np.unique(level), level_steps, [Line2D([], [], color=INK, linewidth=4, label="answer")])
    return svg_of(fig, "Segments of the best-scoring proposals of a window, stage by stage")


@styled
def _movement_chart(tracks: "Tracks", best: np.ndarray) -> str:
    centre_sec = tracks.segments_norm.mean(axis=-1) * tracks.window_sec
    moved = np.abs(np.diff(centre_sec, axis=1)).swapaxes(1, 2)  # [W, N, S]
    fig, ax = axes()
    _bands(ax, moved, best, [f"stage_{k}" for k in range(moved.shape[-1])])
    ax.set_ylabel("seconds")
    return svg_of(fig, "Displacement of the centres by stage")


@styled
def _agreement_chart(tracks: "Tracks", best: np.ndarray) -> str:
    agreement = segments.tiou(tracks.segments_norm, tracks.segments_norm[:, -1:]).swapaxes(1, 2)  # [W, N, S + 1]
    fig, ax = axes()
    _bands(ax, agreement, best, ["initial", *(f"stage_{k}" for k in range(agreement.shape[-1] - 1))])
    ax.set(ylabel="tIoU with the answer", ylim=(0, 1.03))
    return svg_of(fig, "tIoU with the segments of the last stage, by stage")


def _bands(ax: Axes, values: np.ndarray, best: np.ndarray, names: Sequence[str]) -> None:
    """Median and middle half over proposals of [W, N, k], for all and for the best, at k named places."""
    places = np.arange(len(names))
    for colour, name, rows in ((COLOURS[6], "all", values.reshape(-1, len(names))),
                               (COLOURS[0], "best-scoring", values[best])):  # fmt: skip
        low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
        ax.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(places, middle, color=colour, marker="o", markersize=4.5, label=name)
    ax.set_xticks(places, names)
    ax.margins(x=0.08)
    ax.set_ylim(bottom=0)
    ax.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.2)  # type: ignore[union-attr]


@styled
def _level_chart(level: np.ndarray, level_steps: Sequence[int], which: str) -> str:
    """Stacked shares of the levels by stage. int [n, S]."""
    shares = (level[..., None] == np.arange(len(level_steps))).mean(axis=0) * 100  # [S, L]
    fig, ax = axes()
    bottom = np.zeros(len(shares))
    for k, name in enumerate(_level_names(level_steps)):
        ax.bar(np.arange(len(shares)), shares[:, k], 0.62, bottom, color=COLOURS[k % len(COLOURS)], label=name)
        bottom += shares[:, k]
    ax.set_xticks(np.arange(len(shares)), [f"stage_{k}" for k in range(len(shares))])
    ax.set(ylabel="proposals (%)", ylim=(0, 100))
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.2)
    return svg_of(fig, f"Level that each stage reads from, {which} proposals")


def _level_legend(ax: Axes, used: np.ndarray, level_steps: Sequence[int], more: Sequence[Line2D] = ()) -> None:
    names = _level_names(level_steps)
    lines = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=4, label=names[k]) for k in used]
    ax.figure.legend(handles=[*lines, *more], loc="outside upper left", ncols=5,  # type: ignore[union-attr]
                     columnspacing=1.2, handlelength=1.2)  # fmt: skip


def _level_names(level_steps: Sequence[int]) -> list[str]:
    return [f"level {level} ({steps} steps)" for level, steps in enumerate(level_steps)]


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
