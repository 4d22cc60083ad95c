"""How long actions are, as histograms: of a dataset, or the paper's Figure 4 from annotation files alone.

    python -m data_prep.duration_chart --thumos14 ANNOTATIONS --activitynet13 ANNOTATIONS --output figure4.png
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from data_prep import counts
from data_prep.contact_sheet import SOFT, save_picture, shorten, use_style
from data_prep.counts import Length
from sptad_jax.config import DataConfig
from sptad_jax.data.datasets import Dataset, make_video_targets
from sptad_jax.data.windows import VideoTargets, index_windows
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path
from sptad_jax.report.plots import COLOURS

SHARE_BINS = 20  # of 5 % each
_BINS_A_DECADE = 6  # of durations in seconds


def measure_shares(videos: Sequence[VideoTargets], window_frames: int = 0) -> np.ndarray:
    """What share each instance takes of its video, or of the windows that it is a target of (paper 4.2, Figure 4).

    Args:
      videos: as `make_video_targets` or `data_prep.counts.make_targets` give them.
      window_frames: 0 for whole videos, as for ActivityNet; else windows of that length at an overlap of 0.5, in which
        an instance is counted where more than half of it (tIoA) lies, cut at the window, as for THUMOS14.

    Returns: float64 [K] in 0..1; K is the number of instances, or of pairs of an instance and a window.
    """
    if not videos:
        return np.zeros(0)
    if not window_frames:
        shares = [(v.segments_frame[:, 1] - v.segments_frame[:, 0]) / v.num_frames for v in videos]
        return np.minimum(np.concatenate(shares), 1)  # a segment may end within the last frame
    most = max(len(video.labels) for video in videos)
    config = DataConfig(num_frames=window_frames, window_rule="paper", max_targets=most)
    alike = [dataclasses.replace(video, labels=np.zeros_like(video.labels)) for video in videos]
    index = index_windows(alike, config, 1, window_frames // 2)
    start_end = index.segments_norm[index.valid].astype(np.float64)
    return start_end[:, 1] - start_end[:, 0]


def count_shares(shares: np.ndarray) -> np.ndarray:
    """Part of the instances in each of 20 intervals of 5 %: float64 [20], which add up to 1 where there are any."""
    counts, _ = np.histogram(shares, bins=np.linspace(0, 1, SHARE_BINS + 1))
    return counts / max(len(shares), 1)


def draw_figure4(path: str | os.PathLike[str], shares: Mapping[str, np.ndarray]) -> None:
    """Writes the paper's Figure 4 as a PNG of 900 x 420 pixels: the histogram of each name's shares, side by side."""
    with use_style():
        fig = Figure(figsize=(9, 4.2), layout="constrained")
        ax = fig.add_subplot()
        _draw_shares(ax, shares, "length of the action, % of the video or window")
        ax.set_ylabel("instances (%)")
        ax.legend([f"{len(values):,} instances in {shorten(name, 60)}" for name, values in shares.items()])
        save_picture(fig, path)


def draw_durations(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Writes a PNG of 1300 x 360 pixels: durations in seconds, as shares of the videos, and of the paper's windows.

    Raises UserError for a label that the dataset does not list, and OSError where the picture cannot be written.
    """
    subsets = list(dataset.info["subsets"])
    targets = {subset: make_video_targets(dataset, subset) for subset in subsets}
    window = DataConfig().num_frames
    panels = {"length of the action, % of the video": 0}
    if not dataset.info["max_frames"]:  # else the whole video is the window
        panels[f"length of the action, % of windows of {window} frames"] = window
    durations_sec = {subset: np.array([
        row.segment_sec[1] - row.segment_sec[0]
        for video in dataset.videos if video.subset == subset for row in video.annotations]) for subset in subsets}
    with use_style():
        fig = Figure(figsize=(13, 3.6), layout="constrained")
        axes = fig.subplots(1, 1 + len(panels), sharey=True)
        bars = _draw_seconds(axes[0], durations_sec)
        axes[0].set_ylabel("instances (%)")
        for ax, (words, window_frames) in zip(axes[1:], panels.items()):
            _draw_shares(ax, {name: measure_shares(part, window_frames) for name, part in targets.items()}, words)
        # the number first: Matplotlib leaves out legends that begin with an underscore
        names = [f"{len(values):,} instances in {shorten(name, 30)}" for name, values in durations_sec.items()]
        fig.legend(bars, names, loc="outside upper left", ncols=4, columnspacing=1.6, handlelength=1.2)
        save_picture(fig, path)


def _draw_shares(ax: Axes, series: Mapping[str, np.ndarray], words: str) -> None:
    width = 100 / SHARE_BINS / max(len(series), 1)
    places = np.arange(SHARE_BINS) * 100 / SHARE_BINS
    for k, shares in enumerate(series.values()):
        ax.bar(places + (k + 0.08) * width, 100 * count_shares(shares), 0.84 * width, align="edge",
               color=COLOURS[k % len(COLOURS)])
    ax.set(xlabel=words, xlim=(0, 100))
    ax.set_xticks(range(0, 101, 25))
    ax.grid(axis="y")


def _draw_seconds(ax: Axes, series: Mapping[str, np.ndarray]) -> list[Artist]:
    """Histogram over bins of equal ratio; returns one handle for the legend a series."""
    series = {name: np.maximum(values, 1e-3) for name, values in series.items()}  # a logarithm needs more than 0
    every = np.concatenate([*series.values(), np.zeros(0)])
    low, high = (every.min(), every.max()) if len(every) else (1.0, 10.0)
    first = int(np.floor(np.log10(low) * _BINS_A_DECADE))
    last = max(int(np.ceil(np.log10(high) * _BINS_A_DECADE)), first + 1)
    edges = 10.0 ** (np.arange(first, last + 1) / _BINS_A_DECADE)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # rounding must not lose what lies on an edge
    handles: list[Artist] = []
    for k, durations in enumerate(series.values()):
        counts, _ = np.histogram(durations, bins=edges)
        width = np.diff(edges) / len(series)
        bars = ax.bar(edges[:-1] + (k + 0.08) * width, 100 * counts / max(len(durations), 1), 0.84 * width,
                      align="edge", color=COLOURS[k % len(COLOURS)])
        handles.append(bars[0])
    ax.set_xscale("log")
    ticks = [v * 10.0**k for k in range(-3, 5) for v in ((1, 2, 5) if last - first < 14 else (1,))]
    ax.set_xticks([tick for tick in ticks if edges[0] <= tick <= edges[-1]])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0, colors=SOFT)
    ax.set(xlabel="length of the action, seconds", xlim=(edges[0], edges[-1]))
    ax.grid(axis="y")
    return handles


def _load_figure4(thumos14: str, activitynet13: str) -> dict[str, np.ndarray]:
    """The two datasets' shares as the paper counts them; an empty path leaves a dataset out."""
    from data_prep.activitynet13 import MAX_FRAMES, load_activitynet13  # data_prep.check does without both
    from data_prep.thumos14 import load_thumos14

    shares = {}
    if thumos14:
        source = load_thumos14(thumos14)
        known = [video for video in source.videos if video.name in source.lengths]
        if not known:
            raise UserError(f"--thumos14 {thumos14}: no video's length is known; put AFSD's val_video_info.csv and "
                            "test_video_info.csv there.")
        window = DataConfig().num_frames
        shares["THUMOS14"] = measure_shares(counts.make_targets(known, source.lengths, source.classes), window)
    if activitynet13:
        anet = load_activitynet13(activitynet13, ("training", "validation"))
        lengths = {video.name: Length(MAX_FRAMES, MAX_FRAMES / video.duration_sec, video.duration_sec)
                   for video in anet.videos if video.duration_sec}
        known = [video for video in anet.videos if video.name in lengths]
        shares["ActivityNet-1.3"] = measure_shares(counts.make_targets(known, lengths, anet.classes))
    return shares


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.duration_chart", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The paper's Figure 4 from annotation files: how much of a video or window an action takes.",
        epilog="Example: python -m data_prep.duration_chart --thumos14 th14/ --activitynet13 anet/\n"
               "THUMOS14: validation and test, in windows of 256 frames at an overlap of 0.5. ActivityNet: training "
               "and validation, whole videos.\nExit codes: 0 done, 2 input that cannot be used.")
    parser.add_argument("--thumos14", default="", metavar="DIR", help="annotations, as for data_prep.thumos14")
    parser.add_argument("--activitynet13", default="", metavar="PATH", help="as for data_prep.activitynet13")
    parser.add_argument("--output", type=local_path, default="figure4.png", metavar="FILE.png",
                        help="default figure4.png")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    shares = _load_figure4(args.thumos14, args.activitynet13)
    if not shares:
        raise UserError("nothing to draw; give --thumos14, --activitynet13 or both.")
    try:
        draw_figure4(args.output, shares)
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be written ({error.strerror}); choose another.") from None
    for name, values in shares.items():
        print(f"{name}: {len(values)} instances, {100 * (values < 0.25).mean():.1f} % take less than 25 %")
    print(pathlib.Path(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
