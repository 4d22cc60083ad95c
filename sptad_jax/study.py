"""`sptad study`: the rows of tables of ablations as runs of train.py, one after another.

A row is a named change of a base config (configs/ablations.py). Rows that come to the same options share one run, in
WORKDIR/runs/CHANGE/seed_K. What is finished is kept; what was interrupted goes on, since train.py resumes.
"""

import json
import pathlib
import re
import runpy
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sptad_jax.config import Config, apply_overrides, from_dict, load_config, to_dict, validate
from sptad_jax.errors import UserError
from sptad_jax.report.style import duration, plural
from sptad_jax.study_tables import write_tables

PAPER_COLUMNS = ("0.3", "0.4", "0.5", "0.6", "0.7", "average")  # of Tables 4 to 8


class Row(NamedTuple):
    """One line of a table: a named change of the base, and what the paper reports for it."""

    name: str
    changes: tuple[str, ...]  # "group.field=value", as for --set
    paper: tuple[float, ...] = ()  # mAP in percent by PAPER_COLUMNS, as printed; empty where there is none


class Table(NamedTuple):
    """Rows that are to be compared."""

    title: str
    source: str  # place in the paper
    rows: tuple[Row, ...]


class Run(NamedTuple):
    """One training of a row."""

    label: str  # the options in which the row differs from the base
    assignments: tuple[str, ...]  # the row's changes and the seed
    config: Config
    folder: pathlib.Path


def run_study(
    base: str,
    table_names: Sequence[str],
    workdir: pathlib.Path,
    overrides: Sequence[str] = (),
    num_seeds: int = 1,
    *,
    train_script: pathlib.Path = pathlib.Path("train.py"),
    ablations: pathlib.Path = pathlib.Path("configs/ablations.py"),
    tables_only: bool = False,
) -> int:
    """Trains what is not finished yet; writes study.json, study.md and table_NAME.svg into `workdir` after each run.

    Args:
      base: name of a file in configs/, or a path; `overrides` change it as train.py's --set does, before a row does.
      table_names: keys of what get_tables(config) of the file `ablations` returns.
      num_seeds: runs of a row: with the base's train.seed, and the numbers after it.
      tables_only: train nothing, write the tables of what is finished.

    Returns 0, or 2 where a run failed; the others are trained all the same. Raises UserError for bad input and for a
    folder that holds a run with other options, before anything is trained.
    """
    path = pathlib.Path(base if base.endswith(".py") else f"configs/{base}.py")
    for option, file in (("--base", path), ("--train-script", train_script), ("--ablations", ablations)):
        if not file.is_file():
            raise UserError(f"{option}: there is no {file}; start sptad study in a checkout, or give a path.")
    if num_seeds < 1:
        raise UserError(f"--seeds {num_seeds}: each row needs at least one run.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot write there ({error.strerror}); choose another.") from error
    config = load_config(str(path), overrides)
    tables = load_tables(ablations, config, table_names)
    runs = {name: [plan_row(name, row, config, num_seeds, workdir) for row in tables[name].rows] for name in tables}
    # seed by seed, so that the tables are whole early
    unique = {row[k].folder: row[k] for k in range(num_seeds) for rows in runs.values() for row in rows}
    results = {folder: read_results(run) for folder, run in unique.items()}
    waiting = [run for folder, run in unique.items() if results[folder] is None]
    size = f"{plural(len(unique) // num_seeds, 'configuration')} x {plural(num_seeds, 'seed')}: "
    print(size + f"{plural(len(unique), 'run')}, {len(unique) - len(waiting)} finished", flush=True)

    def write() -> None:
        write_tables(workdir, {
            "base": str(path), "set": list(overrides), "tious": [f"{t:g}" for t in config.evaluation.tious],
            "seeds": [config.train.seed + k for k in range(num_seeds)],
            "tables": {name: table._asdict() | {"rows": [
                describe_row(row, planned, [results[run.folder] for run in planned], workdir)
                for row, planned in zip(table.rows, runs[name])]} for name, table in tables.items()},
        })  # fmt: skip

    def train(run: Run) -> None:
        command = [sys.executable, str(train_script), f"--config={path}", *(f"--set={value}" for value in overrides)]
        results[run.folder] = train_one(run, command)
        write()

    write()
    failures = [] if tables_only else train_all(waiting, len(unique), train)
    print(f"tables: {workdir / 'study.md'}")
    return 2 if failures else 0


def load_tables(ablations: pathlib.Path, base: Config, names: Iterable[str]) -> dict[str, Table]:
    """The named tables of a file with get_tables(base), in the order of the names. Raises UserError."""
    get_tables = runpy.run_path(str(ablations)).get("get_tables")
    if get_tables is None:
        raise UserError(f"--ablations {ablations}: the file must define get_tables(config).")
    tables = get_tables(base)
    for name in names:
        if name not in tables:
            raise UserError(f"--tables: {ablations} has no table '{name}'; it has {', '.join(tables)}.")
    return {name: tables[name] for name in names}


def plan_row(table: str, row: Row, base: Config, num_seeds: int, workdir: pathlib.Path) -> list[Run]:
    """A row's runs, one a seed. Raises UserError, naming the row, where its changes do not fit the base."""
    try:
        config = apply_overrides(base, row.changes)
        validate(config)
    except UserError as error:
        raise UserError(f"table {table}, row '{row.name}' does not fit the base: {error}") from error
    label = ",".join(f"{name}={new}" for name, _, new in differences(base, config)) or "base"
    label = re.sub(r"[^\w.,=+-]", "", label)
    runs = []
    for seed in range(base.train.seed, base.train.seed + num_seeds):
        changes = (*row.changes, f"train.seed={seed}")
        folder = workdir / "runs" / label / f"seed_{seed}"
        runs.append(Run(label, changes, apply_overrides(base, changes), folder))
    return runs


def differences(old: Config, new: Config) -> list[tuple[str, str, str]]:
    """("group.field", old value, new value) of the options that differ, values as JSON."""
    changed = to_dict(new)
    return [(f"{group}.{field}", json.dumps(value), json.dumps(changed[group][field]))
            for group, fields in to_dict(old).items() for field, value in fields.items()
            if changed[group][field] != value]  # fmt: skip


def read_results(run: Run) -> dict[str, Any] | None:
    """The content of results.json where the run is finished, else None.

    train.py writes run.json last, results.json after each evaluation. Raises UserError where the folder holds a run
    with other options, or a broken file.
    """
    config = _read_json(run.folder / "config.json")
    if config is None:
        return None
    found = from_dict(config, str(run.folder / "config.json"))
    if found != run.config:
        listed = ", ".join(f"{name} was {old}, is {new}" for name, old, new in differences(found, run.config))
        raise UserError(f"{run.folder} holds a run with other options ({listed}); use another --workdir.")
    results = _read_json(run.folder / "results.json")
    if results is None or not (run.folder / "run.json").is_file():
        return None
    if results.get("map", {}).keys() != {f"{t:g}" for t in run.config.evaluation.tious} or "average_map" not in results:
        raise UserError(f"{run.folder / 'results.json'} is no result of train.py; delete it, and it is made anew.")
    return results


def train_all(runs: Sequence[Run], total: int, train: Callable[[Run], None]) -> list[str]:
    """Calls `train` for one run after another, says how far it is, and at the end what failed; returns that, too."""
    failures: list[str] = []
    start = time.monotonic()
    for k, run in enumerate(runs):
        left = f", about {duration((time.monotonic() - start) / k * (len(runs) - k))} left" if k else ""
        print(f"[{total - len(runs) + k + 1}/{total}] {run.label}, seed {run.config.train.seed}{left} "
              f"(log: {run.folder / 'train.log'})", flush=True)  # fmt: skip
        try:
            train(run)
        except UserError as error:
            failures.append(str(error))
            print(f"  failed: {error}", flush=True)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return failures


def train_one(run: Run, command: list[str]) -> dict[str, Any]:
    """Runs train.py to its end, with train.log for what it prints, and returns its results. Raises UserError.

    `command` is what all runs share. SIGTERM and Ctrl-C are passed on; they end the study once train.py has saved its
    checkpoint.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*command, f"--workdir={run.folder}", *(f"--set={value}" for value in run.assignments)]
    log = run.folder / "train.log"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with log.open("ab") as stream, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    results = read_results(run) if code == 0 else None
    if results is None:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().split("\n")
        raise UserError(f"{run.folder}: train.py ended with code {code} before its end ({lines[-1].strip()}); see "
                        "train.log there, and start the study again to go on.")  # fmt: skip
    return results


def describe_row(
    row: Row, runs: Sequence[Run], results: Sequence[dict[str, Any] | None], workdir: pathlib.Path
) -> dict[str, Any]:
    """A row of study.json: shares in 0..1, ours by column with values by seed, mean and sample standard deviation."""
    finished = [(run.config.train.seed, found) for run, found in zip(runs, results) if found is not None]
    ours = {}
    for column in (*(f"{t:g}" for t in runs[0].config.evaluation.tious), "average"):
        values = [found["average_map"] if column == "average" else found["map"][column] for _, found in finished]
        ours[column] = {
            "values": values,
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return {
        "name": row.name,
        "changes": list(row.changes),
        "folder": runs[0].folder.parent.relative_to(workdir).as_posix(),
        "seeds": [seed for seed, _ in finished],
        "ours": ours,
        "paper": {column: round(value / 100, 4) for column, value in zip(PAPER_COLUMNS, row.paper)},
    }


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The object in a file, None where there is none. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); delete it, and it is made anew.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; delete it, and it is made anew.")
    return value
