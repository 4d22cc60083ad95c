"""The detector that ships with the package, on videos that the package renders."""

import json
import os
import pathlib

import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")

import sptad_jax
from data_prep import synthetic
from sptad_jax import cli
from sptad_jax.evaluation.average_precision import evaluate
from sptad_jax.inference.export import SHIPPED

FILE = pathlib.Path(sptad_jax.__file__).parent / "inference" / f"{SHIPPED}.safetensors"


def test_it_is_small():
    """Catches a detector in full precision: a package of 10 MB is what was promised."""
    assert FILE.stat().st_size <= 10e6


def test_detect_works_right_after_installing(tmp_path, monkeypatch, capsys):
    """Catches weights that do not fit the code any more: frames, flow, windows or layers other than at training.

    The videos are of a seed that it was not trained on. 79 is its average mAP on 24 of another.
    """
    monkeypatch.chdir(tmp_path)
    assert synthetic.main(["--output", "sample", "--train-videos", "0", "--test-videos", "3", "--seed", "9"]) == 0
    assert cli.main(["detect", "sample/videos", "--output", "found.json"]) == 0
    assert ".mp4" in capsys.readouterr().out
    truth = json.loads(pathlib.Path("sample/annotations.json").read_text())
    results = evaluate(truth, json.loads(pathlib.Path("found.json").read_text()), (0.3, 0.5), None)
    assert results["map"]["0.3"] >= 0.5


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, capsys):
    """Catches a detector of one's own in ./demo that is passed over."""
    monkeypatch.chdir(tmp_path)
    os.mkdir(SHIPPED)
    pathlib.Path("a.mp4").write_bytes(b"")
    assert cli.main(["detect", "a.mp4", "--checkpoint", SHIPPED]) != 0
    assert "no checkpoint there" in capsys.readouterr().err
