"""The report of a run and the report of `sptad detect`: one HTML file each, which needs nothing else to be read."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sptad_jax.files import AnyPath, as_path
from sptad_jax.report import comparison, diagnosis, overview, player, style
from sptad_jax.report.records import detections_of, ground_truth_of, read_run
from sptad_jax.report.style import text
from sptad_jax.report.timeline import FramesOf, FrameStrips

_FRAMES = "rgb"  # stream that pictures are taken from
_SHOWN_VIDEOS = 60  # of a detection report


def write_report(workdir: str | os.PathLike[str], frames_of: FramesOf | None = None) -> AnyPath:
    """Writes workdir/report/index.html from what the run has left so far, and returns its path.

    Reads config.json, metrics.jsonl, results.json, analysis.json, detections.json and run.json of `workdir`, and
    ground_truth.json and dataset.json of the folder config.data.dataset_dir. Any of them may be absent or broken: the
    page then says so in a sentence. run.json may hold "command" (str or list), "steps", "seconds_last_start",
    "parameters" (a number), "hardware" and other plain values, which are listed as they are.

    Args:
      frames_of: (video name, times in seconds) -> uint8 frames [H, W, 3], one for each time; None: no pictures.
    """
    folder = as_path(workdir)
    run = read_run(folder)
    compared = comparison.compare(run)
    name = overview.dataset_name(run)
    parts = [
        ("result", "Result", overview.headline(run)),
        ("training", "Training", overview.training(run)),
        ("classes", "Average precision by class", overview.per_class(run)),
        ("videos", "Time lines of videos", comparison.videos(run, compared, FrameStrips(frames_of))),
        ("scores", "Scores and localisation", comparison.scores(compared)),
        ("confusion", "Confusion between classes", comparison.confusion(compared)),
        *diagnosis.sections(run.analysis),
        ("config", "Configuration", overview.configuration(run)),
        ("reproduce", "Reproduce", overview.reproduce(run)),
    ]
    document = style.page(
        f"SP-TAD on {name}" if name else f"SP-TAD: {folder.resolve().name}",
        overview.subtitle(run),
        parts,
        f"Run folder <b>{text(folder.resolve().name)}</b>. SP-TAD: sparse proposals for end-to-end temporal action "
        "detection (arXiv 2109.08847), in JAX.",
    )
    return style.write_page(folder / "report" / "index.html", document)


def write_analysis_report(output_dir: str | os.PathLike[str], analysis: Mapping[str, Any]) -> pathlib.Path:
    """Writes output_dir/index.html with the content of analysis.json drawn, and returns its path."""
    subset = f"subset {text(analysis['subset'])}" if analysis["subset"] else "all videos"
    subtitle = (f"{subset}: {style.plural(analysis['num_ground_truth'], 'instance')}, "
                f"{style.plural(analysis['num_detections'], 'detection')}")
    document = style.page("Error analysis", subtitle, diagnosis.sections(dict(analysis)), "")
    return style.write_page(pathlib.Path(output_dir) / "index.html", document)


def dataset_frames(dataset: Any) -> FramesOf | None:
    """Pictures for `write_report` from a prepared dataset (sptad_jax.data.datasets.Dataset); None if it has no RGB."""
    if _FRAMES not in dataset.streams:
        return None
    places = {video.name: k for k, video in enumerate(dataset.videos)}

    def frames_of(name: str, times_sec: Sequence[float]) -> list[np.ndarray]:
        video = dataset.videos[places[name]]
        frames = [min(max(int(time * video.fps), 0), video.num_frames - 1) for time in times_sec]
        return [dataset.read_frames(places[name], k, k + 1, (_FRAMES,))[_FRAMES][0] for k in frames]

    return frames_of


def write_detection_report(
    output_dir: str | os.PathLike[str],
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
    classes: Sequence[str],
    frames_of: FramesOf | None = None,
    durations: Mapping[str, float] | None = None,
    ground_truth: Mapping[str, Any] | None = None,
    paths: Mapping[str, str | os.PathLike[str]] | None = None,
) -> pathlib.Path:
    """Writes output_dir/index.html with a player and a time line of each video, and returns its path.

    The page refers to the videos where they lie, relative to itself, and copies none of them.

    Args:
      detections: video -> list of {"label", "score", "segment": [start, end] in seconds}.
      classes: names in the order of the model.
      frames_of: as in `write_report`.
      durations: video -> seconds; the last end of a segment where a video is not named.
      ground_truth: an ActivityNet database, or video -> list of {"segment", "label"}; None where there is none.
      paths: video -> its file, for the player; a video that is not named has a time line alone.
    """
    output_dir = pathlib.Path(output_dir)
    found = detections_of(detections)
    truths, known = ground_truth_of((ground_truth or {}).get("database", ground_truth or {}))
    known |= {str(v): float(s) for v, s in (durations or {}).items()}
    strips = FrameStrips(frames_of)
    total = sum(map(len, found.values()))
    tiles = [style.tile(f"{len(found):,}", "video" if len(found) == 1 else "videos"),
             style.tile(f"{total:,}", "detections"),
             style.tile(f"{len(classes):,}", "classes known to the model")]
    shown = list(found)[:_SHOWN_VIDEOS]
    instances = [i for v in shown for i in [*player.drawn(found[v]), *truths.get(v, ())]]
    names = list(dict.fromkeys([*map(str, classes), *sorted({i.label for i in instances})]))
    inner = [player.filters(instances, names) if instances else ""]
    for video in shown:
        source = player.source_url(paths[video], output_dir) if paths and video in paths else ""
        length = known.get(video, 0.0)
        inner.append(player.article(video, found[video], truths.get(video), length, names, strips, source))
    if len(found) > len(shown):
        inner.append(style.empty(f"The first {len(shown)} of {len(found):,} videos are drawn; the file of detections "
                                 "holds them all."))
    parts = [("summary", "Summary", f'<div class="tiles">{"".join(tiles)}</div>{comparison.strip_notes(strips)}'
              + comparison.legend(bool(truths))),
             ("videos", "Videos", "".join(inner) or style.empty("No video was given."))]
    document = style.page("Detected actions", "SP-TAD, temporal action detection", parts, "", player.script())
    return style.write_page(output_dir / "index.html", document)
