"""What is installed is what is meant: versions, lower bounds, and the content of a wheel."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import sptad_jax
from sptad_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    named = [line for name in ("data", "pretrained", "parity") for line in extras[name]]
    return [*PROJECT["project"]["dependencies"], *named, *PROJECT["dependency-groups"]["dev"]]


def test_version_is_one(capsys):
    """Catches a version that is written in two places, and a --version that does not say what runs."""
    assert importlib.metadata.version("sptad-jax") == sptad_jax.__version__
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["sptad_jax"] == sptad_jax.__version__
    assert lines["jax"] == importlib.metadata.version("jax")


def test_lowest_versions_are_the_lower_bounds():
    """Catches a bound that was raised in pyproject.toml, but not in what CI installs to try it."""
    bounds = dict(re.match(r"([\w.-]+)(?:\[\w+\])?(?:>=|==)([\d.]+)", line).groups() for line in requirements())
    pins = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines()]
    assert dict(pin.removesuffix(".*").split("==") for pin in pins if pin) == bounds


def test_bounds_have_two_sides():
    """Catches a dependency of users without an upper bound, which the next major version would break."""
    optional = [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
    for line in [*PROJECT["project"]["dependencies"], *optional]:
        assert "==" in line or ("<" in line and ">=" in line) or line == "importlib_resources>=6", line


def test_wheel_holds_the_packages_and_their_data(tmp_path):
    """Catches a data file that only a checkout has, and tests or benchmarks that would be installed."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    command = [sys.executable, "-m", *build, "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"sptad_jax", "data_prep"}
    tracked = subprocess.run(["git", "ls-files", "sptad_jax", "data_prep"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:  # an unpacked archive has no list of files
        assert {name for name in tracked.stdout.split() if not name.endswith(".md")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
