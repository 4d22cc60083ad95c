"""The package from Python: light to import, typed, and as docs/detections.md shows it."""

import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import sptad_jax
from sptad_jax.data.video import write_video
from tests.reference.detector_run import make_run
from tests.reference.tiny_training import quick_compilation

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_import_is_light():
    """A package that takes seconds to import, or needs FFmpeg, for its version."""
    heavy = "{'jax', 'flax', 'numpy', 'av', 'cv2', 'matplotlib', 'orbax', 'grain', 'tqdm'}"
    code = f"import sys, sptad_jax; print(sorted({heavy} & set(sys.modules)), sptad_jax.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {sptad_jax.__version__}"


def test_typed():
    """Types that no checker of a dependent package sees: the marker is missing, or not installed with the package."""
    assert (pathlib.Path(sptad_jax.__file__).parent / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["sptad_jax"]


def test_example_of_the_docs(tmp_path, monkeypatch, capsys):
    """An example that does not run, or prints something else than the command would."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "detections.md").read_text(), re.DOTALL)
    make_run(tmp_path / "runs" / "demo")
    write_video(tmp_path / "match.mp4", np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), np.uint8), 10)
    monkeypatch.chdir(tmp_path)
    with quick_compilation():
        names: dict = {}
        exec(block, names)
        detector, printed = names["detector"], capsys.readouterr().out.splitlines()
        every = detector.detect("match.mp4")
        assert printed and len(printed) == len(detector.detect("match.mp4", threshold=0.3, top_k=5)) <= 5
        assert detector.detect(pathlib.Path("match.mp4"), classes=["run"]) == [r for r in every if r["label"] == "run"]
    (start, end), label, score = (every[0][name] for name in ("segment", "label", "score"))
    assert printed[0] == f"{start:.1f} - {end:.1f} s  {label}  {score:.2f}"
    with pytest.raises(sptad_jax.UserError, match=r"absent\.mp4"):
        detector.detect("absent.mp4")


def test_missing_package_is_named(monkeypatch):
    """A ModuleNotFoundError of some inner package where the extra is not installed."""
    monkeypatch.delitem(sys.modules, "sptad_jax.inference.detect", raising=False)
    monkeypatch.setitem(sys.modules, "sptad_jax.data.video", None)
    with pytest.raises(sptad_jax.UserError, match=r"install the extra \[data\]"):
        sptad_jax.load("runs/demo")
