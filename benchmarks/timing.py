"""What the benchmarks share: sides that are timed in turns, and results as a table and as JSON."""

import datetime
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sptad_jax.files import write_json


def time_in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, `repeats` times, one after the other in turns, after one untimed round.

    In turns, because the load of a shared machine changes: only ratios within one run mean something.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(numerator, denominator))


def report(title: str, rows: Sequence[Mapping[str, Any]], output: str, **facts: Any) -> None:
    """Prints the rows as a table, and writes them with date and machine to the JSON file `output`, if one is named."""
    names = list(dict.fromkeys(name for row in rows for name in row))  # a row may lack some
    values = [[row.get(name, "") for name in names] for row in rows]
    cells = [names, *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in line] for line in values)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(title)
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for name, value in facts.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if output:
        pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        write_json(output, {"title": title, "date": datetime.date.today().isoformat(), **machine, **facts,
                            "rows": [dict(row) for row in rows]})
