"""study.json as Markdown and as charts: ours beside the paper's. All of it reads the dict that study.json holds."""

import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

from sptad_jax.files import write_json, write_text
from sptad_jax.report.plots import COLOURS, SOFT, axes, styled, svg_of
from sptad_jax.report.style import PALETTE, percent, text

# The page's colours by day: a file of its own has no style sheet.
_LIGHT = {"--ink": "#1d2329", "--soft": "#5c6670", "--line": "#dfe3e7", "--page": "#ffffff"} | {
    f"--c{k}": light for k, (light, _) in enumerate(PALETTE)
}
_ROUNDING = 0.00101  # a printed average and the mean of its printed columns may differ by 0.1 points
_INTRODUCTION = (
    "mAP in percent by tIoU threshold, and the average: mean ± sample standard deviation over the n seeds that are "
    "finished. In brackets: the paper's figure (arXiv 2109.08847), for THUMOS14's test videos; on other data compare "
    "the order of rows, not the figures."
)


def write_tables(workdir: pathlib.Path, study: Mapping[str, Any]) -> None:
    """Writes study.json, study.md and table_NAME.svg for each table of `study`, which is the content of study.json."""
    for name, table in study["tables"].items():
        write_text(workdir / f"table_{name}.svg", draw_table(table, study["tious"]))
    write_json(workdir / "study.json", study)
    write_text(workdir / "study.md", format_study(study))


def format_study(study: Mapping[str, Any]) -> str:
    """The whole study in Markdown."""
    options = "".join(f" {_code(assignment)}" for assignment in study["set"])
    seeds = ", ".join(map(str, study["seeds"]))
    parts = [f"# Study of {study['base']}", f"Options:{options or ' as in the file'}. Seeds: {seeds}.", _INTRODUCTION]
    for name, table in study["tables"].items():
        heading = f"{'Choices' if name == 'choices' else f'Table {name}'}: {table['title']}"
        parts += [f"## {heading}", f"{table['source']}.", _format_rows(table, study), *_remarks(table, study),
                  f"![Average mAP of each row](table_{name}.svg)"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _format_rows(table: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    columns = [*study["tious"], "average"]
    lines = [["row", "options", "n", *columns], ["---", "---", *["---:"] * (len(columns) + 1)]]
    for row in table["rows"]:
        paper = _comparable(row, study["tious"])
        cells = [_format_cell(row["ours"][column], paper.get(column)) for column in columns]
        finished, wanted = len(row["seeds"]), len(study["seeds"])
        number = str(wanted) if finished == wanted else f"{finished} of {wanted}" if finished else "missing"
        lines.append([_plain(row["name"]), " ".join(map(_code, row["changes"])), number, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_cell(ours: Mapping[str, Any], paper: float | None) -> str:
    """{"mean": 0.5, "std": 0.01}, 0.535 -> "50.0 ± 1.0 (53.5)"."""
    spread = f" ± {percent(ours['std'])}" if ours["std"] is not None else ""
    return percent(ours["mean"]) + spread + (f" ({percent(paper)})" if paper is not None else "")


def _remarks(table: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    """What the paper's figures must not be taken for."""
    remarks = []
    for row in table["rows"]:
        paper = _comparable(row, study["tious"])
        if paper and abs(_paper_mean(paper) - paper["average"]) > _ROUNDING:
            remarks.append(f"{_plain(row['name'])}: the paper prints an average of {percent(paper['average'])}; its "
                           f"columns have the mean {percent(_paper_mean(paper))}.")  # fmt: skip
    if any(row["paper"] and not _comparable(row, study["tious"]) for row in table["rows"]):
        remarks.append("The paper's figures are left out: they are for other tIoU thresholds.")
    return remarks


@styled
def draw_table(table: Mapping[str, Any], tious: list[str]) -> str:
    """Average mAP of each row as an SVG file: ours with its spread and each seed, the paper's mean of columns."""
    rows = table["rows"]
    fig, ax = axes(7.2, 1.3 + 0.36 * len(rows))
    ours = [(k, row["ours"]["average"]) for k, row in enumerate(rows) if row["seeds"]]
    paper = [(k, _paper_mean(found)) for k, row in enumerate(rows) if (found := _comparable(row, tious))]
    if paper:
        places, means = zip(*paper)
        ax.plot([100 * mean for mean in means], places, "D", color=COLOURS[1], markerfacecolor="none", markersize=7,
                label="the paper (mean of its columns)")  # fmt: skip
    for k, found in ours:
        ax.plot([100 * value for value in found["values"]], [k] * len(found["values"]), "|", color=COLOURS[0],
                alpha=0.6, markersize=11)  # fmt: skip
    if ours:
        ax.errorbar([100 * found["mean"] for _, found in ours], [k for k, _ in ours],
                    xerr=[100 * (found["std"] or 0.0) for _, found in ours], fmt="o", color=COLOURS[0], markersize=6,
                    capsize=3, label="ours (mean, standard deviation, seeds)")  # fmt: skip
    for k, row in enumerate(rows):
        if not row["seeds"]:
            ax.annotate("ours: missing", (1, k), xycoords=("axes fraction", "data"), ha="right", va="center",
                        color=SOFT, fontsize=8.5)  # fmt: skip
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"average mAP (%) at tIoU {tious[0]} to {tious[-1]}")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.margins(x=0.12)
    if ours or paper:
        fig.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handlelength=1.2)
    svg = svg_of(fig, text(f"Average mAP: {table['title']}"))
    svg = re.sub(r"var\((--\w+)\)", lambda found: _LIGHT[found[1]], svg)
    return svg.replace("<svg ", f'<svg style="background: {_LIGHT["--page"]}" ', 1) + "\n"


def _comparable(row: Mapping[str, Any], tious: list[str]) -> dict[str, float]:
    """The paper's figures of a row, or none where they are for other thresholds than ours."""
    return row["paper"] if row["paper"].keys() == {*tious, "average"} else {}


def _paper_mean(paper: Mapping[str, float]) -> float:
    return statistics.fmean(value for column, value in paper.items() if column != "average")


def _plain(name: str) -> str:
    return name.replace("|", "\\|")


def _code(option: str) -> str:
    return f"`{_plain(option)}`"
