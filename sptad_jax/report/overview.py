"""The sections that show what the run wrote down: result, training, average precision, configuration."""

import json
import pathlib
import shlex
from typing import Any

from sptad_jax.config import Config, to_dict
from sptad_jax.report import plots, style
from sptad_jax.report.records import Run, ground_truth_of, is_number
from sptad_jax.report.style import text

_PARTS = {"loss_class": "class (focal)", "loss_l1": "L1", "loss_giou": "GIoU", "loss_action": "clip action"}


def dataset_name(run: Run) -> str:
    """Name of the folder of the prepared dataset; "" where it is not known."""
    return pathlib.Path(str(run.option("data", "dataset_dir") or "")).name


def subtitle(run: Run) -> str:
    """One line below the title: inputs, size of the detector, hardware."""
    streams = run.option("model", "streams")
    words = [" + ".join(map(str, streams)).replace("rgb", "RGB") if isinstance(streams, (list, tuple)) else ""]
    words += [f"{v} {name}" for name, key in (("proposals", "num_proposals"), ("stages", "num_stages"))
              if (v := run.option("model", key)) is not None]
    words += [f"{run.option('data', 'num_frames')} frames a window" if run.option("data", "num_frames") else "",
              str(run.summary.get("hardware") or "")]
    return " · ".join(text(w) for w in words if w)


def headline(run: Run) -> str:
    """Average mAP, the row of the paper's table, and the sizes of the experiment."""
    table = run.results.get("map")
    table = table if isinstance(table, dict) else {}
    average = run.results.get("average_map")
    tious = list(map(str, table))
    span = f"average mAP, tIoU {tious[0]} to {tious[-1]} (%)" if tious else "average mAP (%)"
    if average is None:
        average, span = _latest_average(run)
    tiles = [style.tile(style.percent(average), span, main=True), *_size_tiles(run)]
    parts = [f'<div class="tiles">{"".join(tiles)}</div>']
    if tious:
        head = "".join(f'<th class="n" scope="col">{text(t)}</th>' for t in tious)
        cells = "".join(f'<td class="n">{style.percent(table[t])}</td>' for t in tious)
        parts.append(
            f'<div class="scroll"><table class="ruled" id="map-table"><thead><tr><th>mAP (%) at tIoU</th>{head}'
            f'<th class="n">average</th></tr></thead><tbody><tr><th scope="row">SP-TAD, this run</th>{cells}'
            f'<td class="n"><b>{style.percent(average)}</b></td></tr></tbody></table></div>'
        )
        parts.append(f'<p class="note">{_protocol(run)}</p>')
    parts.append(_dataset_table(run))
    parts.append(style.listing(run.notices))
    return "".join(parts)


def _latest_average(run: Run) -> tuple[float | None, str]:
    """The newest average mAP in the training log, and the words below it."""
    for record in reversed(run.evaluations):
        if "eval_average_map" in record:
            return record["eval_average_map"], f"average mAP (%) at step {record['step']:,}; training goes on"
    return None, "average mAP: not evaluated yet"


def _protocol(run: Run) -> str:
    protocol, subset = run.results.get("protocol"), run.subset
    words = [f"Protocol: {text(protocol)}." if protocol else "",
             f"Subset: {text(subset)}." if subset else "",
             f"{style.count(run.results.get('num_ground_truth'))} ground-truth instances and "
             f"{style.count(run.results.get('num_detections'))} detections in "
             f"{style.count(run.results.get('num_videos'))} videos."]
    return " ".join(filter(None, words))


def _size_tiles(run: Run) -> list[str]:
    last = run.training[-1] if run.training else {}
    steps = run.summary.get("steps", last.get("step"))
    tiles = [style.tile(style.count(steps), "training steps")] if is_number(steps) else []
    if "epoch" in last:
        planned = run.option("train", "epochs")
        of = f" of {planned:g}" if isinstance(planned, (int, float)) else ""
        tiles.append(style.tile(f"{last['epoch']:.1f}".removesuffix(".0") + of, "epochs"))
    seconds = run.summary.get("seconds_last_start")
    if is_number(seconds):
        tiles.append(style.tile(style.duration(seconds), "wall time since the last start"))
    number = run.summary.get("parameters")
    if is_number(number):
        tiles.append(style.tile(f"{number / 1e6:.1f} M", "parameters"))
    return tiles


def _dataset_table(run: Run) -> str:
    """Videos, instances, classes and hours of each subset of the ground truth."""
    subsets: dict[str, dict[str, Any]] = {}
    for video, entry in run.database.items():
        if isinstance(entry, dict):
            subsets.setdefault(str(entry.get("subset", "")), {})[video] = entry
    roles = {run.option("data", "train_subset"): "training", run.subset: "evaluation"}
    rows = []
    for name, entries in sorted(subsets.items()):
        videos, seconds = ground_truth_of(entries)
        labels = [instance.label for instances in videos.values() for instance in instances]
        numbers = (len(videos), len(labels), len(set(labels)))
        role = f" ({roles[name]})" if name in roles else ""
        rows.append(
            f'<tr><th scope="row">{text(name)}{role}</th>'
            + "".join(f'<td class="n">{n:,}</td>' for n in numbers)
            + f'<td class="n">{f"{sum(seconds.values()) / 3600:.1f}" if seconds else "–"}</td></tr>'
        )
    if not rows:
        return ""
    return (
        '<div class="scroll"><table class="ruled"><thead><tr><th>subset</th><th class="n">videos</th>'
        '<th class="n">instances</th><th class="n">classes</th><th class="n">hours</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_frames_note(run)}"
    )


def _frames_note(run: Run) -> str:
    """How the frames were made, and what was remarkable in the annotations, from dataset.json."""
    streams, size, rate = (run.dataset.get(key) for key in ("streams", "frame_size", "fps"))
    words = [f"{rate:g} frames per second" if is_number(rate) else "",
             f"{size} x {size} pixels" if is_number(size) else "",
             " and ".join(map(str, streams)) if isinstance(streams, list) else ""]
    note = ", ".join(text(w) for w in words if w)
    remarks = run.dataset.get("exceptions")
    remarks = list(map(str, remarks)) if isinstance(remarks, list) else []
    shown = [*remarks[:100], *(["…"] if len(remarks) > 100 else [])]
    return (f'<p class="note">Frames: {note}.</p>' if note else "") + (
        f"<details><summary>{style.plural(len(remarks), 'remark')} on the annotations</summary>{style.listing(shown)}"
        "</details>" if remarks else ""
    )


def training(run: Run) -> str:
    """Curves of loss, its parts, stages, learning rate, and gradient norm; mAP where evaluated often."""
    if not run.training:
        parts = [style.empty("No training step has been logged yet.")]
    else:
        gaps = run.nonfinite_steps[:50]
        known = {k for record in run.training for k in record}
        stages = sorted((k for k in known if k.startswith("loss_stage_")), key=lambda k: (len(k), k))
        charts = [
            ("Total loss", {"loss": "loss"}, "All parts and stages, smoothed; the raw values lie behind."),
            ("Parts of the loss", _PARTS, "Focal loss of the classes, L1 and GIoU of the segments, clip actions."),
            ("Loss of each stage", {k: "stage " + k.removeprefix("loss_stage_") for k in stages},
             "Later stages refine the segments of earlier ones."),
            ("Learning rate", {"learning_rate": "learning rate"}, "As given to the optimiser."),
            ("Gradient norm", {"grad_norm": "gradient norm"}, "Global norm before clipping."),
        ]
        drawn = [
            style.figure(
                plots.curve_chart(run.training, keys, heading, heading != "Learning rate", gaps), heading, note
            )
            for heading, keys, note in charts
            if known & set(keys)
        ]
        parts = [f'<div class="grid">{"".join(drawn)}</div>']
    if run.nonfinite_steps:
        steps = ", ".join(f"{s:,}" for s in run.nonfinite_steps[:8]) + ", …" * (len(run.nonfinite_steps) > 8)
        parts.append(style.empty("The loss was not finite in the lines logged at these steps; they are left out of the "
                                 f"curve and marked by dotted lines: {steps}."))
    parts.append(_map_over_training(run))
    return "".join(parts)


def _map_over_training(run: Run) -> str:
    if len({r["step"] for r in run.evaluations if "eval_average_map" in r}) < 2:
        return ('<p class="note">mAP over training is drawn when a run evaluates more than once '
                "(train.evaluate_every).</p>")
    return style.figure(plots.map_chart(run.evaluations), "mAP over training",
                        "Average over tIoU in bold; single thresholds in grey.")


def per_class(run: Run) -> str:
    """Heat table: AP of each class at each tIoU, best average first."""
    table = run.results.get("per_class")
    rows = {str(k): v for k, v in table.items() if isinstance(v, dict)} if isinstance(table, dict) else {}
    if not rows:
        return style.empty("The average precision of each class appears here after the evaluation.")
    tious = list(dict.fromkeys(k for row in rows.values() for k in row if k != "average"))
    columns = [*tious, "average"]
    counts: dict[str, int] = {}
    for instances in run.ground_truth.values():
        for instance in instances:
            counts[instance.label] = counts.get(instance.label, 0) + 1
    head = "".join(f'<th scope="col" style="text-align:center">{text(c)}</th>' for c in columns)
    body = []
    for label, row in sorted(rows.items(), key=lambda item: -_finite(item[1].get("average"))):
        values = [row.get(c) for c in columns]
        cells = "".join(
            f'<td class="heat" style="--v:{max(_finite(v), 0):.3f}">{style.percent(v)}</td>' for v in values
        )
        body.append(f'<tr><th scope="row" title="{text(label)}">{text(label)}</th>'
                    f'<td class="n">{style.count(counts.get(label))}</td>{cells}</tr>')
    return (
        '<p class="note">AP in percent, best class first; instances are those of the ground truth.</p>'
        f'<div class="scroll"><table id="class-table"><thead><tr><th>class</th><th class="n">instances</th>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _finite(value: Any) -> float:
    return float(value) if is_number(value) else -1.0


def configuration(run: Run) -> str:
    """Every option, those that differ from the defaults in bold."""
    groups = {k: v for k, v in run.config.items() if isinstance(v, dict)}
    if not groups:
        return style.empty("The options of this run were not found.")
    usual, blocks, changed = to_dict(Config()), [], []
    for group, fields in groups.items():
        rows = []
        for field, value in fields.items():
            default = usual.get(group, {}).get(field)
            same = value == (list(default) if isinstance(default, tuple) else default)
            if not same:
                changed.append(f"{group}.{field}")
            shown = value if isinstance(value, str) else json.dumps(value)  # as --set takes it
            rows.append(f'<tr class="{"" if same else "changed"}"><th scope="row">{text(field)}</th>'
                        f'<td class="value">{text(shown)}</td></tr>')
        blocks.append(f"<div><h3>{text(group)}</h3><table class=\"ruled\"><tbody>{''.join(rows)}</tbody></table></div>")
    note = "Options that differ from the defaults are set in bold." if changed else "Every option has its default."
    return (f'<p class="note">{note}</p><details><summary>All options</summary>'
            f'<div class="options">{"".join(blocks)}</div></details>')


def reproduce(run: Run) -> str:
    """The command, and whatever else the run has written down about itself."""
    command = run.summary.get("command")
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    parts = [f"<pre>{text(command)}</pre>" if command else style.empty(
        "The command of this run was not recorded; the configuration above holds every option.")]
    rows = []
    for key, value in run.summary.items():
        if key == "command" or value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {style.count(v) if isinstance(v, int) else v}" for k, v in value.items())
        elif key == "seconds_last_start" and is_number(value):
            key, value = "wall time since the last start", style.duration(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            value = style.count(value)
        rows.append(f'<tr><th scope="row">{text(key.replace("_", " "))}</th><td class="value">{text(value)}</td></tr>')
    if rows:
        parts.append(f'<div class="scroll"><table class="ruled"><tbody>{"".join(rows)}</tbody></table></div>')
    return "".join(parts)
