"""docs/walkthrough.md, run as it stands."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_of_the_walk_through_runs(tmp_path):
    """Catches a command of the page that no longer exists, or does not fit the one before."""
    for package in ("av", "cv2", "grain", "matplotlib"):
        pytest.importorskip(package)
    for name in ("configs", "train.py"):  # of a checkout; the packages are installed
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = BLOCK.findall((ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8"))
    assert len(blocks) == 10
    script = "set -euo pipefail\n" + "\n".join(blocks)
    variables = {
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),  # training, detect and inspect compile the same network
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | variables, capture_output=True,
                          text=True, timeout=1500)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    walk = tmp_path / "walk"
    for page in ("run/report", "found", "inside"):
        assert "<html" in (walk / page / "index.html").read_text(encoding="utf-8")
    assert 0 <= json.loads((walk / "run" / "results.json").read_text())["average_map"] <= 1
    assert (walk / "found.vtt").read_text().startswith("WEBVTT")
    rows = (walk / "found.csv").read_text().splitlines()
    assert 1 < len(rows) <= 6 and rows[0].startswith("video,label,score")
