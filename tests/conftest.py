"""Settings that every test shares."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import absl.flags
import pytest

absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags and refuse unparsed ones

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Real videos, annotations and golden detections that are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data beside the checkout (../shared/data) is absent")
    return SHARED
