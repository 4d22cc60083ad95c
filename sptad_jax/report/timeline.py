"""Time lines as inline SVG: ground truth above detections in one row per class, frames of the video on top."""

import base64
import dataclasses
import io
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from sptad_jax.report.records import Instance
from sptad_jax.report.style import PALETTE, text

FramesOf = Callable[[str, Sequence[float]], Sequence[np.ndarray]]  # (video, times_sec) -> uint8 [H, W, 3] each

_WIDTH, _GUTTER, _RIGHT = 1000, 168, 14  # of the drawing, in its own units (about pixels)
_LANE, _BAR, _ROW_GAP = 13, 10, 10
_TILES, _TILE_HEIGHT = 10, 62
_STEPS_SEC = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def assign_lanes(segments: Sequence[tuple[float, float]]) -> list[int]:
    """A lane for each (start, end) so that no two in a lane overlap, with the fewest lanes possible.

    Segments that only touch may share a lane. Sweeping by start time, each takes the first lane that is free.
    """
    lanes = [0] * len(segments)
    ends: list[float] = []
    for index in sorted(range(len(segments)), key=lambda k: segments[k]):
        start, end = segments[index]
        lane = next((k for k, busy_until in enumerate(ends) if busy_until <= start), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        lanes[index] = lane
    return lanes


@dataclasses.dataclass
class FrameStrips:
    """Makes strips of small frames until `budget` bytes of page are spent; `failed` and `skipped` name the videos."""

    frames_of: FramesOf | None
    budget: int = 1_800_000
    failed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def draw(self, video: str, duration_sec: float) -> str:
        """SVG images spread over the time axis, each from the middle of its share; "" where there are none."""
        if self.frames_of is None:
            return ""
        if self.budget <= 0:
            self.skipped.append(video)
            return ""
        times = [(k + 0.5) / _TILES * duration_sec for k in range(_TILES)]
        try:
            frames = list(self.frames_of(video, times))
            sources = [_data_uri(frame) for frame in frames[:_TILES]]
        except Exception as error:  # a picture that is missing must not cost the page
            logging.getLogger(__name__).warning("no frames of %s for the report: %s", video, error)
            self.failed.append(video)
            return ""
        width = (_WIDTH - _GUTTER - _RIGHT) / _TILES
        images = [
            f'<image x="{_GUTTER + k * width:.1f}" y="0" width="{width - 2:.1f}" height="{_TILE_HEIGHT}" '
            f'preserveAspectRatio="xMidYMid slice" href="{source}"/>'
            for k, source in enumerate(sources)
        ]
        self.budget -= sum(map(len, images))
        return "".join(images)


def _data_uri(frame: np.ndarray) -> str:
    """uint8 [H, W, 3] -> a JPEG of at most twice the size of a tile, as a data URI."""
    image = Image.fromarray(np.ascontiguousarray(frame, np.uint8))
    image.thumbnail((4 * _TILE_HEIGHT, 2 * _TILE_HEIGHT))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def timeline(duration_sec: float, ground_truth: Sequence[Instance] | None, detections: Sequence[Instance],
             classes: Sequence[str], strip: str = "", description: str = "") -> str:
    """The drawing of one video: seconds along x; per class its ground truth (solid) above its detections (by score).

    Args:
      duration_sec: length of the axis; longer where a segment ends later.
      ground_truth: None leaves the ground-truth lanes out.
      classes: in the order that fixes the colours; labels that are not among them are drawn too.
      strip: SVG of frames from `FrameStrips.draw`, or "".

    Bars carry their numbers as data-* attributes and the drawing its scale, for report.js.
    """
    everything = [*(ground_truth or ()), *detections]
    span = max([duration_sec, 1e-3, *(i.end_sec for i in everything)])
    order = list(dict.fromkeys([*classes, *sorted({i.label for i in everything})]))
    top = _TILE_HEIGHT + 8 if strip else 2
    y, rows = top, []
    for k, label in enumerate(order):
        truths = [i for i in ground_truth or () if i.label == label]
        found = {place: i for place, i in enumerate(detections) if i.label == label}
        if truths or found:
            row, height = _row(label, truths, found, span, y, k % len(PALETTE))
            rows.append(row)
            y += height + _ROW_GAP
    axis = _axis(span, top - 2, y)
    return (
        f'<div class="wide"><svg class="timeline" viewBox="0 0 {_WIDTH} {y + 34}" role="img" '
        f'aria-label="{text(description)}" data-span="{span:.3f}" data-left="{_GUTTER}" data-right="{_WIDTH - _RIGHT}">'
        f"{strip}{axis}{''.join(rows)}</svg></div>"
    )


def _x(seconds: float, span: float) -> float:
    return _GUTTER + (_WIDTH - _GUTTER - _RIGHT) * min(max(seconds / span, 0.0), 1.0)


def _row(label: str, truths: list[Instance], found: dict[int, Instance], span: float, top: int, colour: int
         ) -> tuple[str, int]:
    """One class: its name, lanes of ground truth, lanes of detections (by their places). Returns SVG and height."""
    parts, y = [], top
    shown = label if len(label) <= 20 else label[:19] + "…"
    parts.append(
        f'<text x="0" y="{top + 10}" font-size="12.5" fill="var(--ink)">{text(shown)}'
        f"<title>{text(label)}</title></text>"
    )
    for kind, instances in (("ground truth", dict(enumerate(truths))), ("detection", found)):
        if not instances:
            continue
        lanes = assign_lanes([(i.start_sec, i.end_sec) for i in instances.values()])
        parts.append(
            f'<text x="{_GUTTER - 8}" y="{y + 10}" font-size="9.5" text-anchor="end" fill="var(--soft)">'
            f"{'truth' if kind == 'ground truth' else 'found'}</text>"
        )
        parts += [_bar(i, span, y + lane * _LANE, colour, kind, place)
                  for (place, i), lane in zip(instances.items(), lanes)]
        y += (max(lanes, default=0) + 1) * _LANE + (2 if kind == "ground truth" else 0)
    return f'<g class="row">{"".join(parts)}</g>', y - top


def _bar(item: Instance, span: float, y: int, colour: int, kind: str, place: int) -> str:
    left, right = _x(item.start_sec, span), _x(item.end_sec, span)
    name = f"{kind}: {item.label}, {item.start_sec:.1f}–{item.end_sec:.1f} s"
    data = f'data-label="{text(item.label)}" data-start="{item.start_sec:.3f}" data-end="{item.end_sec:.3f}"'
    if kind == "detection":
        name += f", score {item.score:.3f}"
        data += f' data-score="{item.score:.4f}" data-item="{place}"'
        opacity = 0.12 + 0.88 * min(max(item.score, 0.0), 1.0)
        look = f'fill="var(--c{colour})" fill-opacity="{opacity:.2f}" stroke="var(--c{colour})" stroke-width="0.7"'
    else:
        look = 'fill="var(--ink)"'
    return (
        f'<rect x="{left:.1f}" y="{y + 1}" width="{max(right - left, 2.0):.1f}" height="{_BAR}" rx="1.5" {look} '
        f'class="bar" {data}><title>{text(name)}</title></rect>'
    )


def _axis(span: float, top: int, bottom: int) -> str:
    step = next((s for s in _STEPS_SEC if span / s <= 10), float(math.ceil(span / 8 / 3600) * 3600))
    parts = []
    for k in range(int(span / step) + 1):
        x = _x(k * step, span)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="var(--line)"/>'
            f'<text x="{x:.1f}" y="{bottom + 15}" font-size="11" text-anchor="middle" fill="var(--soft)">'
            f"{k * step:g}</text>"
        )
    parts.append(
        f'<text x="{_GUTTER - 8}" y="{bottom + 15}" font-size="11" text-anchor="end" fill="var(--soft)">seconds</text>'
        f'<line x1="{_GUTTER}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="var(--soft)"/>'
    )
    return "".join(parts)
