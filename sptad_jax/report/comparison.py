"""The sections that compare detections with ground truth: time lines, scores, confusion."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sptad_jax.report import matches, plots, style
from sptad_jax.report.matches import Curve
from sptad_jax.report.records import Instance, Run
from sptad_jax.report.style import text
from sptad_jax.report.timeline import FrameStrips, timeline

_CONFUSION_CLASSES = 20
_NO_COMPARISON = "Detections and ground truth of the same videos are needed for this part; it fills after evaluation."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Detections against ground truth, counted once for all sections."""

    ground_truth: Mapping[str, list[Instance]]
    detections: Mapping[str, list[Instance]]
    curves: Mapping[str, Curve]  # at tIoU 0.5; "" is pooled
    threshold: float  # score of the best pooled F1
    kept: Mapping[str, list[Instance]]  # detections that reach it


def compare(run: Run) -> Comparison | None:
    """None where there is nothing to compare: no ground truth, or no detection in its videos."""
    found = {v: run.detections[v] for v in run.ground_truth if run.detections.get(v)}
    if not found or not any(run.ground_truth.values()):
        return None
    curves = matches.curves(run.ground_truth, found)
    threshold = matches.operating_score(curves[""])
    return Comparison(run.ground_truth, found, curves, threshold, matches.above(found, threshold))


def class_names(run: Run) -> list[str]:
    """Classes in the order that fixes the colours: of the config, then of results, ground truth and detections."""
    configured = run.option("data", "classes")
    names = [str(c) for c in configured] if isinstance(configured, (list, tuple)) else []
    per_class = run.results.get("per_class")
    names += sorted(map(str, per_class)) if isinstance(per_class, dict) else []
    names += sorted({i.label for videos in (run.ground_truth, run.detections) for v in videos.values() for i in v})
    return list(dict.fromkeys(names))


def legend(with_truth: bool) -> str:
    """How to read a time line."""
    entries = [("var(--ink)", 1.0, "ground truth")] if with_truth else []
    entries += [("var(--c0)", 1.0, "detection of a high score"), ("var(--c0)", 0.25, "of a low score")]
    swatches = "".join(f'<i class="swatch" style="background: {c}; opacity: {o}"></i>{name}' for c, o, name in entries)
    return (f'<p class="note">{swatches}</p><p class="note">Each class has a colour. Overlapping segments lie in lanes '
            "of their own. Point at a bar for its numbers.</p>")


def best_of(shown: int, total: int) -> str:
    """How many of a video's detections are drawn."""
    return style.plural(total, "detection") if shown == total else f"the {shown} best of {total:,} detections"


def strip_notes(strips: FrameStrips) -> str:
    """Sentences on videos that are shown without pictures."""
    notes = []
    if strips.failed:
        notes.append(f"Frames of {', '.join(strips.failed[:5])} could not be read, so no pictures are shown there.")
    if strips.skipped:
        notes.append(f"{style.plural(len(strips.skipped), 'further video')} without pictures: the page stays small.")
    return style.listing(notes)


def videos(run: Run, comparison: Comparison | None, strips: FrameStrips) -> str:
    """Time lines of the best, the median and the worst video."""
    if comparison is None:
        return style.empty(_NO_COMPARISON)
    scores = matches.video_scores(comparison.ground_truth, comparison.kept)
    ranked = sorted(scores, key=lambda v: (-scores[v], v))
    chosen = {ranked[0]: "Best"}
    for name, place in (("Median", len(ranked) // 2), ("Worst", len(ranked) - 1)):
        chosen.setdefault(ranked[place], name)
    classes, parts = class_names(run), []
    for video, name in chosen.items():
        truths, found = comparison.ground_truth[video], comparison.detections.get(video, [])
        shown = found[: max(12, 2 * len(truths))]
        length = max([run.durations_sec.get(video, 0.0), *(i.end_sec for i in truths)])
        note = (f"Video score {100 * scores[video]:.1f} %; {style.duration(length)}; "
                f"{style.plural(len(truths), 'instance')}; {best_of(len(shown), len(found))}.")
        drawing = timeline(length, truths, shown, classes, strips.draw(video, length), f"Time line of {video}")
        parts.append(f'<h3>{name}: {text(video)}</h3><p class="note">{note}</p>{drawing}')
    intro = (
        f'<p class="note">{style.plural(len(ranked), "video")}, ranked by a video score: the mean, over the ground '
        "truths, of the highest tIoU with a detection of the same class that scores at least "
        f"{comparison.threshold:.3f} (the threshold of the best F1, below).</p>"
    )
    return intro + legend(True) + "".join(parts) + strip_notes(strips)


def scores(comparison: Comparison | None) -> str:
    """Precision and recall at tIoU 0.5, and how well detections fit."""
    if comparison is None:
        return style.empty(_NO_COMPARISON)
    pooled = comparison.curves[""]
    best = int(pooled.f1.argmax())
    tious = matches.best_tious(comparison.ground_truth, comparison.kept)
    hit = tious[tious >= 0.5]
    figures = [
        style.figure(plots.precision_recall_chart(comparison.curves), "Precision and recall at tIoU 0.5",
                     f"Pooled over classes in bold, classes in grey. At the dot F1 is {100 * pooled.f1[best]:.1f} %."),
        style.figure(plots.score_chart(pooled, comparison.threshold), "Which score to trust",
                     f"F1 is highest for detections that score at least {comparison.threshold:.3f} (dashed line): "
                     f"precision {100 * pooled.precision[best]:.1f} %, recall {100 * pooled.recall[best]:.1f} %."),
        style.figure(plots.tiou_chart(tious), "How well detections fit",
                     f"Detections at that threshold. Of {len(tious):,}, {len(hit):,} reach tIoU 0.5"
                     + (f"; their median is {np.median(hit):.2f}." if len(hit) else ".")),
    ]
    note = f"The {matches.PER_VIDEO} highest-scoring detections of each video are counted."
    return f'<p class="note">{note}</p><div class="grid">{"".join(figures)}</div>'


def confusion(comparison: Comparison | None) -> str:
    """Heat table of ground-truth class against predicted class for pairs of tIoU 0.5 and more."""
    if comparison is None:
        return style.empty(_NO_COMPARISON)
    both = (comparison.ground_truth, comparison.kept)
    classes = sorted({i.label for videos in both for found in videos.values() for i in found})
    counts = matches.confusion(*both, classes)
    note = ("Pairs of tIoU 0.5 or more, made regardless of class, of detections at the best-F1 threshold. Rows are "
            "ground truth (shade: share of the row); blue is right, orange is wrong. The last row "
            "holds detections that found no ground truth left to pair with.")
    if len(classes) > _CONFUSION_CLASSES:
        inner = counts[:-1, :-1]
        wrong = inner.sum(0) + inner.sum(1) - 2 * inner.diagonal()
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:_CONFUSION_CLASSES])
        note += f" Shown: the {_CONFUSION_CLASSES} of {len(classes)} classes that are most often confused."
        classes = [classes[k] for k in chosen]
        places = np.append(chosen, len(inner))
        counts, totals = counts[np.ix_(places, places)], counts.sum(axis=1)[places]
    else:
        totals = counts.sum(axis=1)
    mistakes = counts[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
    if mistakes.any():
        true, said = np.unravel_index(mistakes.argmax(), mistakes.shape)
        note += (f" Most often confused: {text(classes[true])} taken for {text(classes[said])} "
                 f"({style.plural(int(mistakes.max()), 'time')}).")
    return f'<p class="note">{note}</p>{_confusion_table(counts, totals, classes)}'


def _confusion_table(counts: np.ndarray, totals: np.ndarray, classes: list[str]) -> str:
    head = "".join(f'<th scope="col"><span title="{text(c)}">{text(c)}</span></th>' for c in [*classes, "missed"])
    body = []
    for row, label in enumerate([*classes, "background"]):
        cells = []
        for column in range(len(classes) + 1):
            number = int(counts[row, column])
            kind = "heat" if row == column else "heat wrong"
            blank = row == column == len(classes)
            share = number / max(int(totals[row]), 1)
            cells.append(f'<td class="{kind}" style="--v:{share:.3f}">{"" if blank or not number else number}</td>')
        body.append(f'<tr><th scope="row" title="{text(label)}">{text(label)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll" style="max-height:none"><table class="confusion" id="confusion-table"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
