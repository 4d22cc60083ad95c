"""The series of benchmarks, and the components among them: that their sides compute the same, and that all are run."""

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from benchmarks import __main__ as series
from benchmarks import components


def test_components_agree_and_are_timed(monkeypatch, tmp_path):
    """Another way to compute an operation, or PyTorch's, that gives other numbers or gradients (it would end in
    SystemExit); a component that is missing from the table."""
    path = tmp_path / "components.json"
    arguments = ["components", "--batch", "1", "--frames", "16", "--repeats", "1", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--dtype", "float32", "bfloat16"])
    components.main()
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 2 * 2 * (3 + 2 + 3 + 3)
    assert {row["component"].split(",")[0] for row in rows} == {
        "SoI Align", "dynamic convolution", "max pool 1x3x3", "max pool 3x3x3"}  # fmt: skip
    assert all(row["ms"] > 0 and (row["to pytorch"] == 1 or row["side"] != "pytorch") for row in rows)


def test_a_component_that_differs_is_told(monkeypatch):
    """A comparison that passes whatever a side computes, here bins that are read at one place each."""
    hat_functions = components.hat_functions
    monkeypatch.setattr(components, "hat_functions", lambda *args: hat_functions(*args).round())
    monkeypatch.setattr(sys, "argv", ["components", "--batch", "1", "--frames", "16", "--repeats", "1"])
    with pytest.raises(SystemExit, match=r"SoI Align, B1 .*, forward: dense matrix and pytorch differ by"):
        components.main()


def test_the_series_goes_on_after_a_failure(monkeypatch, capsys, tmp_path):
    """A benchmark that fails and takes the others with it, or whose failure the exit status hides; options that do not
    arrive."""
    commands = []

    def run(command, cwd):
        commands.append(command[1:])
        return SimpleNamespace(returncode=int("benchmarks.matching" in command))

    monkeypatch.setattr(series, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(series.jax_side, "on_accelerator", lambda: True)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--peak-tflops", "989", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"failed, see their messages above: matching\."):
        series.main()
    assert [command[1] for command in commands] == [f"benchmarks.{name}" for name in series.SERIES]
    assert all("--quick" in command and command[-1].startswith(str(tmp_path)) for command in commands)
    assert f"{len(series.SERIES)} benchmarks in" in capsys.readouterr().out
    assert {"bfloat16", "--compile", "989.0"} <= {*commands[0]} and not {"bfloat16", "989.0"} & {*commands[1]}
