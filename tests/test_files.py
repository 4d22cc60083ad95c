"""Work folders in a bucket (gs://): an in-memory file system of fsspec stands in for the network."""

import json
import os
import pathlib

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

import train
from sptad_jax import cli
from sptad_jax.errors import UserError
from sptad_jax.evaluation.files import load_detections
from sptad_jax.files import to_path, write_bytes, write_json
from sptad_jax.inference.export import read_detector
from sptad_jax.inference.postprocess import write_detections
from sptad_jax.report.page import write_report
from sptad_jax.training import checkpoints
from sptad_jax.training.metrics import MetricWriter


class Objects(MemoryFileSystem):
    """As gcsfs: whole objects by name, no appending."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **kwargs):
        assert not mode.startswith(("a", "r+")), "objects cannot be appended to"
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
    objects = Objects()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: objects)
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    return objects


def test_file_in_a_bucket_is_one_object(bucket, tmp_path):
    """An address cut to a folder gs:/..., temporary objects left behind, or a second write that does not replace."""
    write_json("gs://runs/a/b.json", {"x": 1})
    write_bytes("gs://runs/a/b.json", b"2")
    assert epath.Path("gs://runs/a/b.json").read_bytes() == b"2"
    assert list(bucket.store) == ["/runs/a/b.json"]
    assert not list(tmp_path.parent.glob("gs:*")) and not os.path.exists("gs:")


def test_names_that_are_no_text(tmp_path):
    """A path with bytes that are not UTF-8, told in dataset.json after days of work: it must be written, and be read
    back as it was."""
    name = os.fsdecode(b"/videos/\xff.mp4")
    write_json(tmp_path / "a.json", {"exceptions": [f"{name}: broken", "é"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"exceptions": [f"{name}: broken", "é"]}


def test_failed_write_is_an_oserror(bucket, monkeypatch):
    """An error of the network that no caller expects, and that ends in a traceback."""

    def fail(*_, **__):
        raise RuntimeError("503")

    monkeypatch.setattr(bucket, "open", fail)
    with pytest.raises(UserError, match=r"gs://runs/a/detections.json: cannot be written .RuntimeError: 503"):
        write_detections("gs://runs/a/detections.json", {})


def test_metrics_in_a_bucket(bucket):
    """Lines of a killed process lost, or those kept that a resumed one writes again; a line held back."""
    folder = epath.Path("gs://runs/a")

    def steps():
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    first = MetricWriter(folder, 1)  # killed: never closed
    for step in (10, 20, 30):
        first.write(step, {"loss": 1.0})
        assert steps()[-1] == step
    second = MetricWriter(folder, 25)
    second.write(30, {"loss": 2.0})
    second.close()
    assert steps() == [10, 20, 30]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 2.0


def test_detections_and_report_in_a_bucket(bucket):
    """A part of the final evaluation that takes the address for a folder of the disk."""
    folder = epath.Path("gs://runs/a")
    found = {"v": [{"segment": [1.0, 2.0], "label": "jump", "score": 0.5}]}
    write_detections(folder / "detections.json", found)
    assert load_detections(folder / "detections.json")["results"] == found
    write_json(folder / "config.json", {"train": {"seed": 1234567}})
    page = write_report(folder)
    assert page == folder / "report" / "index.html" and "1234567" in page.read_text()
    assert not os.path.exists("gs:")


def test_folder_of_checkpoints_in_a_bucket(tmp_path, monkeypatch):
    """`resolve`, which makes gs://runs a folder of the disk; TensorStore, which writes there, is not faked."""
    monkeypatch.chdir(tmp_path)
    assert os.fspath(checkpoints._absolute(epath.Path("gs://runs/a"))) == "gs://runs/a"
    assert checkpoints._absolute(pathlib.Path("a")) == tmp_path / "a"


def test_file_of_detections_out_of_reach(monkeypatch, capsys):
    """A traceback of `sptad evaluate` where gcsfs is missing."""

    def fail(path):
        raise ImportError("install gcsfs")

    monkeypatch.setattr(backend.fsspec_backend, "fs", fail)
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    assert cli.main(["evaluate", "--ground-truth", "gs://runs/gt.json", "--detections", "gs://runs/d.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gs://runs/gt.json: cannot be read") and "install gcsfs" in line


def test_only_known_addresses_are_taken(tmp_path):
    """s3:// made into a folder of that name, or a folder /s3 made into a bucket, as epath does."""
    assert to_path(tmp_path / "a", "--workdir") == tmp_path / "a"
    assert isinstance(to_path("/s3/mounted", "--workdir"), pathlib.Path)
    with pytest.raises(UserError, match=r"--workdir s3://b/run: only gs://"):
        to_path("s3://b/run", "--workdir")


@pytest.mark.parametrize("error", [ImportError("install gcsfs"), PermissionError("no access"), RuntimeError("404")])
def test_bucket_out_of_reach_is_one_sentence(monkeypatch, capsys, error):
    """A traceback of the package, of the network or of the rights; training that begins all the same."""

    def fail(path):
        raise error

    monkeypatch.setattr(backend.fsspec_backend, "fs", fail)
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    with pytest.raises(UserError, match=r"--checkpoint gs://runs/a: cannot be reached .*\[gcs\]"):
        read_detector("gs://runs/a")
    assert train.main(["--config", "configs/demo.py", "--workdir", "gs://runs/a"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: --workdir gs://runs/a: cannot be reached")


def test_study_wants_a_folder(bucket, capsys):
    """A folder named gs: of the disk, filled by hours of training."""
    assert cli.main(["study", "--base", "demo", "--tables", "4", "--workdir", "gs://runs/study"]) == 2
    assert "gs://runs/study: a study reads" in capsys.readouterr().err and not os.path.exists("gs:")
