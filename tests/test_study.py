"""`sptad study` with a stand-in for train.py: what runs, what is skipped, and the tables by hand."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import matplotlib.figure
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sptad_jax import study_tables
from sptad_jax.cli import main
from sptad_jax.config import Config, apply_overrides
from sptad_jax.study import Row, describe_row, plan_row
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.test_train import CONFIG

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "reference" / "fake_train.py"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def study(workdir, *more, base="demo", tables="6", script=FAKE):
    return main(["study", "--base", base, "--tables", tables, "--workdir", str(workdir), "--train-script", str(script),
                 *more])  # fmt: skip


def starts(workdir):
    """How often each run was started, by its folder below runs/."""
    found = {path.parent.relative_to(workdir / "runs").as_posix(): len(path.read_text().split())
             for path in workdir.glob("runs/*/*/starts.txt")}  # fmt: skip
    return dict(sorted(found.items()))


def read(workdir, table="6"):
    """Rows of a table of study.json, by name."""
    rows = json.loads((workdir / "study.json").read_text())["tables"][table]["rows"]
    return {row["name"]: row for row in rows}


def cells(workdir, table="Table 6"):
    """Rows of a table of study.md, by name."""
    section = (workdir / "study.md").read_text().split(f"## {table}:")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def test_tables_by_hand(tmp_path, capsys):
    """Another seed or row than the table says, the population's deviation, figures that are not beside the paper's."""
    assert study(tmp_path, "--seeds", "3") == 0
    assert len(starts(tmp_path)) == 12 and set(starts(tmp_path).values()) == {1}
    row = read(tmp_path)["1"]
    # stages 1, seeds 0 1 2: (1 + 0, 1 + 1, 1 + 4) / 20 - 0.003; squares of distances from 0.13333: 0.0216667
    assert row["ours"]["0.3"]["values"] == pytest.approx([0.047, 0.097, 0.247])
    assert row["ours"]["0.3"]["mean"] == pytest.approx(0.130333, abs=1e-6)
    assert row["ours"]["0.3"]["std"] == pytest.approx(0.104083, abs=1e-6)
    assert row["ours"]["average"]["mean"] == pytest.approx(0.128333, abs=1e-6)
    assert row["paper"] == {"0.3": 0.601, "0.4": 0.544, "0.5": 0.457, "0.6": 0.347, "0.7": 0.231, "average": 0.436}
    assert row["seeds"] == [0, 1, 2] and row["folder"] == "runs/model.num_stages=1"
    printed = cells(tmp_path)
    assert printed["row"] == ["options", "n", "0.3", "0.4", "0.5", "0.6", "0.7", "average"]
    assert printed["1"][:3] == ["`model.num_stages=1`", "3", "13.0 ± 10.4 (60.1)"]
    assert printed["1"][-1] == "12.8 ± 10.4 (43.6)" and printed["4"][-1] == "27.8 ± 10.4 (53.5)"
    page = (tmp_path / "study.md").read_text()
    assert page.count("the paper prints") == 1
    assert "\n2: the paper prints an average of 49.6; its columns have the mean 50.4.\n" in page
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split()[0] for line in lines] == [f"[{k}/12]" for k in range(1, 13)]
    assert "left" not in lines[0] and all(re.search(r", about [\d.]+ (s|min .*) left", line) for line in lines[1:])
    assert "model.num_stages=1, seed 0" in lines[0] and "model.num_stages=1, seed 1" in lines[4]


@given(st.lists(st.floats(0, 1), min_size=0, max_size=6), st.integers(0, 5))
def test_statistics_equal_numpy(values, first):
    """Mean or deviation over other values than those of the finished seeds."""
    base = apply_overrides(Config(), [f"train.seed={first}"])
    runs = plan_row("t", Row("r", ()), base, len(values) + 1, pathlib.Path("w"))
    found = [{"map": dict.fromkeys(("0.3", "0.4", "0.5", "0.6", "0.7"), value), "average_map": value / 2}
             for value in values]  # fmt: skip
    row = describe_row(Row("r", ()), runs, [*found, None], pathlib.Path("w"))
    assert row["seeds"] == [first + k for k in range(len(values))] and row["folder"] == "runs/base"
    for column, factor in (("0.5", 1), ("average", 0.5)):
        ours = row["ours"][column]
        assert ours["mean"] == (pytest.approx(factor * np.mean(values), abs=1e-12) if values else None)
        assert ours["std"] == (pytest.approx(factor * np.std(values, ddof=1), abs=1e-9) if len(values) > 1 else None)


def test_same_options_are_trained_once(tmp_path):
    """Three rows that are all the base, trained three times; a row that is given another row's figures."""
    sets = ("--set", "model.num_stages=4")
    assert study(tmp_path, *sets, tables="5,6,8") == 0
    assert list(starts(tmp_path)) == [
        f"{label}/seed_0" for label in (
            "base", "data.num_frames=112,data.stride_test=56", "data.num_frames=144,data.stride_test=72",
            "data.num_frames=160,data.stride_test=80", "model.num_stages=1", "model.num_stages=2",
            "model.num_stages=6", "model.pyramid=high", "model.pyramid=single")]  # fmt: skip
    shared = [read(tmp_path, "5")["Inter Level TFP"], read(tmp_path)["4"], read(tmp_path, "8")["128"]]
    assert {row["folder"] for row in shared} == {"runs/base"}
    assert [row["ours"]["average"]["mean"] for row in shared] == pytest.approx([0.195] * 3)
    assert read(tmp_path)["6"]["ours"]["average"]["mean"] == pytest.approx(0.295)
    assert "Options: `model.num_stages=4`." in (tmp_path / "study.md").read_text()


def test_finished_runs_are_kept(tmp_path, capsys):
    """Days of training repeated because a seed, a table or nothing at all was added."""
    assert study(tmp_path) == 0
    before = (tmp_path / "study.json").read_bytes()
    assert study(tmp_path) == 0
    assert set(starts(tmp_path).values()) == {1} and (tmp_path / "study.json").read_bytes() == before
    assert "4 configurations x 1 seed: 4 runs, 4 finished" in capsys.readouterr().out
    assert study(tmp_path, "--seeds", "2", "--set", "train.seed=0") == 0
    assert set(starts(tmp_path).values()) == {1} and len(starts(tmp_path)) == 8
    assert read(tmp_path)["6"]["seeds"] == [0, 1]
    capsys.readouterr()
    assert study(tmp_path, "--set", "train.seed=1") == 0
    assert "4 runs, 4 finished" in capsys.readouterr().out and read(tmp_path)["6"]["seeds"] == [1]


@pytest.mark.parametrize("fault, code, last", [
    ("fail", 2, "error: data.dataset_dir: there is none."), ("kill", -9, "seed 0"), ("stop", 0, "seed 0")])
def test_failed_run_is_reported_and_the_rest_goes_on(tmp_path, capsys, monkeypatch, fault, code, last):
    """One bad row that ends a night's study, a success that is none, an evaluation on the way taken for the end."""
    monkeypatch.setenv("FAKE_TRAIN", json.dumps({"num_stages=2/": fault}))
    assert study(tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "model.num_stages=2" in captured.err and f"code {code} " in captured.err and f"({last})" in captured.err
    assert starts(tmp_path) == {f"model.num_stages={k}/seed_0": 1 for k in (1, 2, 4, 6)}
    assert cells(tmp_path)["2"][1:3] == ["missing", "– (66.0)"] and read(tmp_path)["2"]["seeds"] == []
    assert cells(tmp_path)["6"][1:3] == ["1", "29.7 (65.4)"]
    assert "seed 0" in (tmp_path / "runs" / "model.num_stages=2" / "seed_0" / "train.log").read_text()

    monkeypatch.delenv("FAKE_TRAIN")
    assert study(tmp_path) == 0
    assert starts(tmp_path) == {f"model.num_stages={k}/seed_0": 1 + (k == 2) for k in (1, 2, 4, 6)}
    assert cells(tmp_path)["2"][1:3] == ["1", "9.7 (66.0)"]


def test_tables_of_a_study_under_way(tmp_path, monkeypatch):
    """Tables that need every run, that take a run for finished whose mark was lost, or that start one."""
    assert study(tmp_path, "--tables-only") == 0
    assert all(row[1] == "missing" for name, row in cells(tmp_path).items() if name not in ("row", "---"))
    assert starts(tmp_path) == {} and ElementTree.parse(tmp_path / "table_6.svg")
    assert study(tmp_path) == 0
    (tmp_path / "runs" / "model.num_stages=4" / "seed_0" / "run.json").unlink()
    assert study(tmp_path, "--seeds", "2", "--tables-only", tables="6,7") == 0
    printed = cells(tmp_path)
    assert [printed[name][1] for name in ("1", "2", "4", "6")] == ["1 of 2", "1 of 2", "missing", "1 of 2"]
    assert cells(tmp_path, "Table 7")["with"][1:3] == ["missing", "– (69.2)"]
    assert set(starts(tmp_path).values()) == {1}


def test_run_with_other_options_is_refused(tmp_path, capsys):
    """Two settings mixed in one table, or a checkpoint that goes on under other options."""
    assert study(tmp_path) == 0
    before = (tmp_path / "study.md").read_bytes()
    capsys.readouterr()
    assert study(tmp_path, "--set", "train.learning_rate=0.5", "--seeds", "2") == 2
    line = refused(capsys)
    assert "train.learning_rate was 0.0003, is 0.5" in line and "--workdir" in line and "model.num_stages=1" in line
    assert len(starts(tmp_path)) == 4 and (tmp_path / "study.md").read_bytes() == before


def refused(capsys):
    """One line on standard error; returns it."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("options, words", [
    ({"tables": "6,9"}, ["--tables", "'9'", "4, 5, 6, 7, 8, choices"]),
    ({"base": "demos"}, ["--base", "configs/demos.py"]),
    ({"base": "nowhere/mine.py"}, ["--base", "nowhere/mine.py"]),
    ({"script": "absent.py"}, ["--train-script", "absent.py", "checkout"]),
    ({"more": ("--ablations", "configs/none.py")}, ["--ablations", "configs/none.py"]),
    ({"more": ("--ablations", "configs/demo.py")}, ["--ablations", "configs/demo.py", "get_tables"]),
    ({"more": ("--seeds", "0")}, ["--seeds 0"]),
    ({"more": ("--set", "model.num_stage=2")}, ["--set", "'model.num_stages'"]),
    ({"more": ("--set", "loss.stage_weights=[1,1,1]")}, ["table 6", "row '1'", "loss.stage_weights"]),
], ids=str)  # fmt: skip
def test_bad_options(tmp_path, capsys, options, words):
    """A traceback, a run that starts before the mistake is found, or a sentence without the option."""
    options = dict(options)
    assert study(tmp_path, *options.pop("more", ()), **options) == 2
    line = refused(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "runs").exists()


def test_bad_folders(tmp_path, capsys):
    """A file for a work folder, or a broken file of a run: a traceback, or figures from rubbish."""
    (tmp_path / "file").write_text("mine")
    assert study(tmp_path / "file") == 2
    assert "--workdir" in refused(capsys)
    assert study(tmp_path / "w") == 0
    folder = tmp_path / "w" / "runs" / "model.num_stages=6" / "seed_0"
    for name, text in (("results.json", "{"), ("results.json", '{"map": {"0.5": 1}}'), ("config.json", "[]"),
                       ("config.json", '{"model": {"odd": 1}}')):  # fmt: skip
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        capsys.readouterr()
        assert study(tmp_path / "w") == 2
        assert str(folder / name) in refused(capsys)
        (folder / name).write_text(before)


def test_sigterm_lets_the_run_save_and_ends_the_study(tmp_path):
    """A training that goes on without its study and meets the next one in its folder, or that is killed at once."""
    folder = tmp_path / "runs" / "model.num_stages=1" / "seed_0"
    command = [sys.executable, "-m", "sptad_jax.cli", "study", "--base", "demo", "--tables", "6", "--workdir",
               str(tmp_path), "--train-script", str(FAKE)]  # fmt: skip
    environment = os.environ | {"FAKE_TRAIN": json.dumps({"seed_0": "wait"})}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (folder / "waiting").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and err == "interrupted\n" and (folder / "saved").exists()
    assert list(starts(tmp_path)) == ["model.num_stages=1/seed_0"]
    assert study(tmp_path) == 0 and starts(tmp_path)["model.num_stages=1/seed_0"] == 2


def test_thresholds_of_another_data_set(tmp_path):
    """ActivityNet's columns filled with the paper's THUMOS14 figures."""
    assert study(tmp_path, "--tables-only", base="activitynet13", tables="5") == 0
    row = cells(tmp_path, "Table 5")["Single Level"]
    assert len(row) == 13 and row[2:] == ["–"] * 11
    assert "for other tIoU thresholds" in (tmp_path / "study.md").read_text()
    assert "the paper (" not in (tmp_path / "table_5.svg").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were drawn, with their elements."""
    figures: list[matplotlib.figure.Figure] = []
    draw = study_tables.svg_of
    monkeypatch.setattr(study_tables, "svg_of", lambda fig, text: figures.append(fig) or draw(fig, text))
    return figures


def test_chart_shows_the_figures(tmp_path, drawn):
    """Points in another row than their label, shares for percent, the printed average for the mean of the columns."""
    assert study(tmp_path, "--seeds", "2", "--set", "train.seed=1") == 0
    (axes,) = drawn[-1].axes
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    paper = points["the paper (mean of its columns)"]
    np.testing.assert_allclose(paper, [[43.6, 0], [50.4, 1], [53.5, 2], [49.92, 3]], atol=0.01)
    (ours,) = (box for box in axes.containers if str(box.get_label()).startswith("ours"))
    centres, _, (bars,) = ours
    # stages k, seeds 1 and 2: k / 20 + (1 + 4) / 2 / 20 - 0.005; the deviation is 3 / 20 / sqrt(2)
    means = [17.0, 22.0, 32.0, 42.0]
    np.testing.assert_allclose(centres.get_xydata(), np.stack([means, range(4)], 1))
    for (start, end), mean in zip(bars.get_segments(), means):
        np.testing.assert_allclose([start[0], end[0]], [mean - 10.607, mean + 10.607], atol=0.001)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "4", "6"]
    assert axes.yaxis_inverted()  # the first row on top
    svg = (tmp_path / "table_6.svg").read_text()
    ElementTree.fromstring(svg)
    assert "var(" not in svg and "#0102" not in svg  # no colour is left to a style sheet that a file lacks


def test_own_ablations(tmp_path):
    """A user's file that is not read, or a name in it that breaks the table or the drawing."""
    path = tmp_path / "mine.py"
    path.write_text("from sptad_jax.study import Row, Table\n\ndef get_tables(base):\n    return {'mine': Table("
                    "'<b> $x$', 'me', (Row('a|b', ('model.num_stages=2', 'data.dataset_dir=../x|y z')),))}\n")
    assert study(tmp_path / "w", "--ablations", str(path), tables="mine") == 0
    (line,) = [line for line in (tmp_path / "w" / "study.md").read_text().splitlines() if line.startswith("| a")]
    assert len(re.split(r"(?<!\\)\|", line)) == 11 and line.endswith(" 9.5 |")
    texts = [node.text for node in ElementTree.parse(tmp_path / "w" / "table_mine.svg").iter() if node.text]
    assert "a|b" in texts
    (folder,) = (tmp_path / "w" / "runs").iterdir()
    assert "num_stages=2" in folder.name and len(starts(tmp_path / "w")) == 1


def test_real_training(tmp_path, monkeypatch):
    """A study that does not know a finished run of the real train.py, or that is refused its options there."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    (tmp_path / "data").mkdir()
    base = tmp_path / "tiny.py"
    base.write_text(CONFIG.format(dataset=str(make_tiny_dataset(tmp_path / "data"))))
    path = tmp_path / "mine.py"
    path.write_text("from sptad_jax.study import Row, Table\n\ndef get_tables(base):\n"
                    "    return {'mine': Table('eta', 'me', (Row('eta 4', ('model.eta=4',)),))}\n")
    options = ("--ablations", str(path), "--set", "train.epochs=1")
    assert study(tmp_path / "w", *options, base=str(base), tables="mine", script="train.py") == 0
    row = read(tmp_path / "w", "mine")["eta 4"]
    results = json.loads((tmp_path / "w" / row["folder"] / "seed_0" / "results.json").read_text())
    assert row["seeds"] == [0] and row["ours"]["average"]["values"] == [results["average_map"]]
    config = json.loads((tmp_path / "w" / row["folder"] / "seed_0" / "config.json").read_text())
    assert (config["model"]["eta"], config["train"]["epochs"], config["model"]["num_stages"]) == (4.0, 1.0, 1)
