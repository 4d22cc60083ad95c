"""Where numbers go: lines of a run that was killed and resumed, TensorBoard events, files that are never half."""

import json
import os
import struct
import subprocess
import sys

import pytest

from sptad_jax.files import write_json, write_text
from sptad_jax.training import metrics
from sptad_jax.training.metrics import MetricWriter, Progress


def write(folder, first_step, *lines):
    writer = MetricWriter(folder, first_step)
    for step, loss in lines:
        writer.write(step, {"loss": loss})
    writer.close()


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_object_a_line(tmp_path):
    """Lines without a step, or numbers rounded on the way."""
    write(tmp_path, 1, (10, 1 / 3), (20, 2.0))
    assert read(tmp_path) == [{"step": 10, "loss": 1 / 3}, {"step": 20, "loss": 2.0}]


def test_beside_another_process(tmp_path):
    """Lines of a training that goes on, cut away by its evaluation, or half a line that swallows the next."""
    write(tmp_path, 1, (10, 1.0), (20, 2.0))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    write(tmp_path, None, (10, 0.5))
    first, second, _, last = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in (first, second, last)] == [1.0, 2.0, 0.5]


def test_lines_are_there_at_once(tmp_path):
    """A killed process that takes its last lines with it."""
    writer = MetricWriter(tmp_path, 1)
    writer.write(1, {"loss": 1.0})
    assert read(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


def test_resumed_run_drops_what_it_will_write_again(tmp_path):
    """Steps twice in the file, or the last line before the checkpoint lost."""
    write(tmp_path, 1, *[(step, 1.0) for step in (10, 20, 30, 40)])
    write(tmp_path, 30, (30, 2.0))
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_half_line_is_tolerated(tmp_path):
    """A line cut by a kill (or damaged otherwise) that stops the run, or that the next line is glued to."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n\n[1, 2]\n{"loss": 3}\n7\n{"step": 20, "lo')
    write(tmp_path, 30, (30, 2.0))
    assert [line["step"] for line in read(tmp_path)] == [10, 30]


def events_of(folder):
    """(step, tag, value) of event files, read by TFRecord's framing and tensorboardX's own messages."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            place += 16 + length
    return found


def test_tensorboard_events(tmp_path):
    """Events that are not flushed, or under another step than their line's."""
    pytest.importorskip("tensorboardX")
    write(tmp_path, 1, (10, 0.5), (20, 0.25))
    assert events_of(tmp_path) == [(10, "loss", 0.5), (20, "loss", 0.25)]


def test_tensorboard_takes_no_pytorch(tmp_path):
    """190 MB more and a second in each process that trains; a PyTorch that cannot be imported afterwards."""
    for package in ("tensorboardX", "torch"):
        pytest.importorskip(package)
    code = """if True:
        import pathlib, sys
        from sptad_jax.training.metrics import MetricWriter
        writer = MetricWriter(pathlib.Path(sys.argv[1]), 1)
        writer.write(10, {"loss": 0.5})
        writer.close()
        assert "tensorboardX" in sys.modules and "torch" not in sys.modules
        import torch"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert events_of(tmp_path) == [(10, "loss", 0.5)]


def test_works_without_tensorboard(tmp_path, monkeypatch, capsys):
    """A training image without tensorboardX that cannot train; and a silent lack of events."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    write(tmp_path, 1, (10, 0.5))
    assert read(tmp_path) == [{"step": 10, "loss": 0.5}] and not (tmp_path / "tensorboard").exists()
    assert "tensorboardX" in capsys.readouterr().err


def test_files_are_whole(tmp_path, monkeypatch):
    """A reader, or a full disk, that leaves half a file under the final name, or temporary files beside it."""
    path = tmp_path / "results.json"
    write_text(path, "old")
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append((path.read_text(), os.path.dirname(source) == os.path.dirname(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_json(path, {"map": {"0.5": 0.25}})
    assert seen == [("old", True)]  # another folder may be another disk, where renaming copies
    assert json.loads(path.read_text()) == {"map": {"0.5": 0.25}} and os.listdir(tmp_path) == ["results.json"]


def test_progress_of_a_resumed_run(monkeypatch, capsys):
    """Rate and time left that count the steps of the earlier process."""
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    progress = Progress(1000, 1050, "step", "train")
    for _ in range(20):
        progress.update()
    progress.line("loss 1.500")  # 20 steps in 10 s, 30 to go
    progress.close()
    assert capsys.readouterr().out == "train 1020/1050  2.00/s  0.2 min left  loss 1.500\n"


def test_progress_before_any_step(capsys):
    """A division by zero in the first instant."""
    Progress(0, 5, "step", "train").line("")
    assert capsys.readouterr().out.startswith("train 0/5  0.00/s")
