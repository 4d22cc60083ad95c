"""What the page of detections lets a reader do: play each video above its time line, and filter. See report.js."""

import collections
import importlib.resources
import os
import pathlib
import urllib.parse
from collections.abc import Sequence

from sptad_jax.report import comparison, style
from sptad_jax.report.records import Instance
from sptad_jax.report.style import PALETTE, text
from sptad_jax.report.timeline import FrameStrips, timeline

# Of one video: all that score at least _SURE, but no fewer than the first and no more than the second of these.
_FEWEST, _MOST, _SURE = 25, 100, 0.1

_KEYS = (
    ("n", "p", "next, previous detection"),
    ("space", "", "play, pause"),
    ("←", "→", "one second back, on"),
    ("−", "+", "lower, raise the least score"),
)


def script() -> str:
    """The page's script."""
    return importlib.resources.files(__package__).joinpath("report.js").read_text(encoding="utf-8")


def source_url(file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """URL of a file relative to the folder of the page; absolute where no relative path leads there (other drive)."""
    try:
        relative = os.path.relpath(file, folder)
    except ValueError:
        return pathlib.Path(file).absolute().as_uri()
    return urllib.parse.quote(os.fsencode(relative.replace(os.sep, "/")))


def drawn(found: Sequence[Instance]) -> Sequence[Instance]:
    """Those of a video's detections (best score first) that the page shows."""
    return found[: min(max(sum(d.score >= _SURE for d in found), _FEWEST), _MOST)]


def filters(instances: Sequence[Instance], classes: Sequence[str]) -> str:
    """Least score, classes and the list of keys; hidden until the script is there to serve them.

    Args:
      instances: everything that the page shows, for the number beside each class; a class without any is left out.
      classes: in the order that fixes the colours.
    """
    counts = collections.Counter(i.label for i in instances)
    boxes = "".join(
        f'<li><label><input type="checkbox" checked value="{text(label)}">'
        f'<i class="swatch" style="background: var(--c{k % len(PALETTE)})"></i>'
        f'<span>{text(label)} <span class="soft">{counts[label]:,}</span></span></label></li>'
        for k, label in enumerate(classes) if counts[label]
    )
    keys = ", ".join(" ".join(f"<kbd>{key}</kbd>" for key in pair if key) + f" {what}" for *pair, what in _KEYS)
    return (
        '<div class="filter" role="group" aria-label="Filter" hidden>'
        '<label>Least score <input type="range" min="0" max="1" step="0.01" value="0">'
        '<output aria-live="off">0.00</output></label>'
        f'<details><summary>Classes: <span class="picked">all</span></summary>'
        '<input type="search" placeholder="Find a class" aria-label="Find a class">'
        '<button type="button" value="on">Check these</button><button type="button" value="">Uncheck these</button>'
        f'<ul aria-label="Classes">{boxes}</ul></details>'
        '<p class="note" role="status"></p>'
        f'<p class="note">Click a bar, a row or a place on a time line to play from there. Keys: {keys}.</p></div>'
    )


def article(video: str, found: Sequence[Instance], truths: Sequence[Instance] | None, duration_sec: float,
            classes: Sequence[str], strips: FrameStrips, source: str) -> str:
    """Name, player, time line and table of the best detections of one video.

    Args:
      found: best score first.
      source: URL of the file; "" leaves the player out.
    """
    best = drawn(found)
    length = max([duration_sec, *(i.end_sec for i in [*best, *(truths or ())])])
    drawing = timeline(length, truths, best, classes, strips.draw(video, length), f"Time line of {video}")
    if not best and not truths:
        drawing += style.empty("Nothing was detected in this video.")
    screen = f'<div>{_screen(video, source) if source else ""}<p class="note now" aria-live="polite"></p></div>'
    table = _table(best, bool(source)) if best else ""
    inner = f'<div class="{"stage" if source else ""}">{screen}{drawing}{table}</div>'
    note = f"{style.duration(length)}; {comparison.best_of(len(best), len(found))}"
    return f'<article class="video"><h3>{text(video)}</h3><p class="note">{note}.</p>{inner}</article>'


def _screen(video: str, source: str) -> str:
    name = text(urllib.parse.unquote(source.rpartition("/")[2], errors="replace"))
    return (
        f'<video controls playsinline preload="metadata" src="{text(source)}" aria-label="Video {text(video)}">'
        f'</video><p class="empty" hidden>{name} does not play here: it is no longer where it was, or the browser does '
        "not know its format. A copy by sptad detect --render would play.</p>"
    )


def _table(best: Sequence[Instance], is_open: bool) -> str:
    rows = "".join(
        f'<tr data-item="{k}" data-label="{text(d.label)}" data-score="{d.score:.4f}">'
        f'<th scope="row" title="{text(d.label)}">{text(d.label)}</th><td class="n">{d.score:.3f}</td>'
        f'<td class="n">{d.start_sec:.1f}</td><td class="n">{d.end_sec:.1f}</td></tr>'
        for k, d in enumerate(best)
    )
    return (
        f'<details{" open" if is_open else ""}><summary>Table of detections</summary><div class="scroll">'
        '<table class="ruled"><thead><tr><th>class</th><th class="n">score</th><th class="n">start (s)</th>'
        f'<th class="n">end (s)</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
