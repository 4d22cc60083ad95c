"""A picture of one video of a dataset: a row of frames, their flow in colour, and the segments on a time line."""

import contextlib
import itertools
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sptad_jax.data.annotations import Annotation
from sptad_jax.data.datasets import Dataset, StoredVideo
from sptad_jax.report.plots import COLOURS
from sptad_jax.report.timeline import assign_lanes

DPI = 100
INK, SOFT, LINE = "#1d2329", "#5c6670", "#dfe3e7"  # of the report's light page
_FAR_FONTS = (  # looked into for letters that Matplotlib's own font lacks, where they are installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC",
    "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS")
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

_TILES = 10  # frames of a video
_MAX_LANES = 20  # classes of a video; more are counted, not drawn
_WIDTH, _GUTTER, _STRIP, _TITLE, _TILE, _LANE, _AXIS = 13.0, 1.75, 11.0, 0.4, 1.1, 0.27, 0.5  # inches


def draw_contact_sheet(dataset: Dataset, video_index: int, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, 1300 pixels wide, of one video.

    Up to ten frames, each from the middle of its share of the video; below each its flow; below, over seconds, one lane
    for every class of the video with its segments, and a line at the time of each frame.

    Args:
      dataset: as `open_dataset` gives it.
      video_index: into `dataset.videos`.
      path: of the PNG; its folder must exist.

    Raises whatever reading the frames raises, and OSError where the picture cannot be written.
    """
    video = dataset.videos[video_index]
    numbers = pick_evenly(video.num_frames, _TILES)
    frames = [dataset.read_frames(video_index, n, n + 1) for n in numbers]
    labels = sorted({row.label for row in video.annotations}, key=_order_of(dataset.classes))
    streams = [name for name in ("rgb", "flow") if name in dataset.streams]
    lanes_height = _LANE * max(1, min(len(labels), _MAX_LANES))
    height = _TITLE + _TILE * len(streams) + 0.12 + lanes_height + _AXIS
    with use_style():
        fig = Figure(figsize=(_WIDTH, height))
        top = _draw_title(fig, video)
        for name in streams:
            top -= _TILE
            tiles = [frame[name][0] for frame in frames]
            if name == "flow":
                bound = float(dataset.info["flow"]["bound"])
                tiles = [colour_flow(tile, bound) for tile in tiles]
                _draw_wheel(fig, top, bound)
            else:
                _write_beside(fig, top, f"{video.num_frames:,} frames\n{video.fps:.4g} a second")
            _draw_tiles(_add_axes(fig, _GUTTER, top, _STRIP, _TILE), tiles)
        ax = _add_axes(fig, _GUTTER, top - 0.12 - lanes_height, _STRIP, lanes_height)
        _draw_time_line(ax, video, labels, dataset.classes, np.array(numbers) / video.fps)
        save_picture(fig, path)


def pick_evenly(total: int, count: int) -> list[int]:
    """The middle one of each of `count` equal shares of 0..total-1; all of them where there are not so many."""
    count = min(count, total)
    return [int((k + 0.5) * total / count) for k in range(count)]


def colour_flow(flow: np.ndarray, bound: float) -> np.ndarray:
    """Stored flow as colours. uint8 [..., 2] (x to the right, y down) of `bound` pixels -> uint8 RGB [..., 3].

    The two bytes beside rest, 127 and 128, are both shown as rest; see `colour_motion`.
    """
    steps = flow.astype(np.float32) - 127.5
    pixels = np.sign(steps) * (np.abs(steps) - 0.5) * (2 * bound / 255)
    return colour_motion(pixels, bound)


def colour_motion(motion: np.ndarray, bound: float) -> np.ndarray:
    """Motion in pixels as colours. float [..., 2] (x to the right, y down) -> uint8 RGB [..., 3].

    Hue is the direction, clockwise on the screen from red: right red, down yellow-green, left cyan, up violet (OpenCV's
    tutorial). White is rest; the saturation is the square root of magnitude / bound, since most motion is far below the
    bound, and full beyond it.
    """
    x, y = motion[..., 0].astype(np.float32), motion[..., 1].astype(np.float32)
    hsv = np.ones((*x.shape, 3), np.float32)
    hsv[..., 0] = np.degrees(np.arctan2(y, x)) % 360
    hsv[..., 1] = np.sqrt(np.minimum(np.hypot(x, y) / bound, 1))
    rgb = cv2.cvtColor(hsv.reshape(-1, 1, 3), cv2.COLOR_HSV2RGB)
    return np.rint(255 * rgb).astype(np.uint8).reshape(hsv.shape)


def shorten(name: str, letters: int) -> str:
    """A name on one line, of so many letters at most (Chinese and the like count twice, as they are twice as wide).

    Characters that cannot be drawn are replaced.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(name).split()))
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in clean]
    if sum(widths) <= letters:
        return clean
    return clean[:sum(end < letters for end in itertools.accumulate(widths))] + "…"


def use_style() -> contextlib.AbstractContextManager[None]:
    """Look and fonts of the pictures: Matplotlib's own font, then those for other scripts that this machine has."""
    have = set(fontManager.get_font_names())
    style: Any = {**_STYLE, "font.family": ["DejaVu Sans", *(name for name in _FAR_FONTS if name in have)]}
    return matplotlib.rc_context(style)


def save_picture(fig: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure as a PNG, whole or not at all. Letters that no font has become boxes, without a warning."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            warnings.filterwarnings("ignore", message="Matplotlib currently does not support")  # e.g. Devanagari
            fig.savefig(temporary, format="png", dpi=DPI, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _order_of(classes: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    index = {name: k for k, name in enumerate(classes)}
    return lambda label: (index.get(label, len(index)), label)


def _add_axes(fig: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    full_width, full_height = fig.get_size_inches()
    return fig.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def _draw_title(fig: Figure, video: StoredVideo) -> float:
    """Returns the height in inches at which the rows begin."""
    height = fig.get_size_inches()[1]
    fig.text(_GUTTER / _WIDTH, 1 - 0.2 / height, shorten(video.name, 60), va="center", fontsize=13, fontweight="bold")
    facts = f"{shorten(video.subset, 24)}, {video.duration_sec:.1f} s, {len(video.annotations):,} instances"
    fig.text((_GUTTER + _STRIP) / _WIDTH, 1 - 0.2 / height, facts, va="center", ha="right", color=SOFT)
    return height - _TITLE


def _write_beside(fig: Figure, bottom: float, words: str) -> None:
    fig.text((_GUTTER - 0.12) / _WIDTH, (bottom + _TILE / 2) / fig.get_size_inches()[1], words, ha="right",
             va="center", color=SOFT, fontsize=9, linespacing=1.5)


def _draw_tiles(ax: Axes, tiles: Sequence[np.ndarray]) -> None:
    """Square pictures, each at the middle of its share of the width; uint8 [H, W, 3] each."""
    share, side = _STRIP / len(tiles), min(_STRIP / _TILES, _TILE) - 0.05
    for k, tile in enumerate(tiles):
        left = (k + 0.5) * share - side / 2
        ax.imshow(tile, extent=(left, left + side, 0.03, 0.03 + side), interpolation="antialiased")
        ax.add_patch(Rectangle((left, 0.03), side, side, fill=False, edgecolor=LINE))  # flow at rest is white
    ax.set(xlim=(0, _STRIP), ylim=(0, _TILE), aspect="auto")
    ax.set_axis_off()


def _draw_wheel(fig: Figure, bottom: float, bound: float) -> None:
    """The legend of the flow's colours: a disc whose rim is `bound` pixels."""
    places = np.linspace(-1, 1, 160)
    motion = np.stack(np.meshgrid(places, places), axis=-1)  # y grows downwards, as in a picture
    radius = np.hypot(motion[..., 0], motion[..., 1])
    cover = np.clip((1 - radius) * 80, 0, 1)  # a soft rim
    disc = np.dstack([colour_motion(motion * bound, bound), np.rint(255 * cover).astype(np.uint8)])
    ax = _add_axes(fig, _GUTTER - 0.97, bottom + 0.125, 0.85, 0.85)
    ax.imshow(disc, interpolation="antialiased")
    ax.set_axis_off()
    fig.text((_GUTTER - 1.05) / _WIDTH, (bottom + _TILE / 2) / fig.get_size_inches()[1],
             f"flow\nrim {bound:g} px", ha="right", va="center", color=SOFT, fontsize=9, linespacing=1.5)


def _draw_time_line(
    ax: Axes, video: StoredVideo, labels: Sequence[str], classes: Sequence[str], times_sec: np.ndarray
) -> None:
    """One lane for each label, in the colour of its class; segments of a class that overlap share their lane."""
    end_sec = max(video.duration_sec, 1e-3)
    order = _order_of(classes)
    shown = labels[:_MAX_LANES]
    for time_sec in times_sec:
        ax.axvline(time_sec, color=SOFT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    ax.plot(times_sec, np.ones(len(times_sec)), "v", color=SOFT, markersize=5, clip_on=False,
            transform=ax.get_xaxis_transform())
    for lane, label in enumerate(shown):
        rows = [row for row in video.annotations if row.label == label]
        _draw_lane(ax, lane, rows, COLOURS[order(label)[0] % len(COLOURS)], end_sec)
    ax.set(xlim=(0, end_sec), ylim=(max(len(shown), 1) - 0.45, -0.55))
    ax.set_yticks(range(len(shown)), [shorten(label, 22) for label in shown], color=INK, fontsize=9)
    ax.tick_params(axis="y", length=0, pad=8)
    words = "seconds"
    if len(labels) > len(shown):
        words += f"    ({len(labels) - len(shown)} more classes are not drawn)"
    if not labels:
        words += "    (no instances)"
    ax.set_xlabel(words, labelpad=2)
    ax.xaxis.set_major_locator(MaxNLocator(12))


def _draw_lane(ax: Axes, lane: int, rows: Sequence[Annotation], colour: str, end_sec: float) -> None:
    """Bars of one class, each with its times inside, or on its right, or without, as there is room."""
    segments = sorted(row.segment_sec for row in rows)
    levels = assign_lanes(segments)
    high = 0.78 / (max(levels) + 1)
    starts = [start for start, _ in segments] + [end_sec]
    for level in set(levels):
        # a bar is at least a pixel or two wide, however long the video
        bars = [(a, max(b - a, end_sec / 700)) for (a, b), own in zip(segments, levels) if own == level]
        ax.broken_barh(bars, (lane - 0.39 + level * high, high * 0.94), color=colour, edgecolor="white", linewidth=0.5)
    for (start, stop), level in zip(segments, levels):
        bottom = lane - 0.39 + level * high
        words = f"{start:.1f}–{stop:.1f}"
        needs_sec = (0.072 * len(words) + 0.08) * end_sec / _STRIP
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "clip_on": True}
        middle = bottom + high * 0.47
        if high < 0.5:  # too low for letters
            continue
        if stop - start > needs_sec:
            ax.text((start + stop) / 2, middle, words, ha="center", color="white", **style)
        elif min(later for later in starts if later >= min(stop, end_sec)) - stop > needs_sec:
            ax.text(stop + 0.05 * end_sec / _STRIP, middle, words, ha="left", color=SOFT, **style)
