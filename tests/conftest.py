"""Settings that every test shares."""

import errno
import gc
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import absl.flags
import jax
import pytest

from tests.reference.parity import TOLERANCE, Errors, largest_error, write_table

absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags and refuse unparsed ones

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SLOWEST = ("test_distributed.py", "test_preemption.py", "test_walkthrough.py")
ERRORS = pytest.StashKey[Errors]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-table", metavar="FILE", help="write the largest error of each parity test (with -n 0)")
    parser.addoption("--screenshots", metavar="FOLDER", help="write the README's pictures of the report of detections")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ERRORS] = {}
    if config.getoption("parity_table") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--parity-table collects errors in one process: give -n 0 with it")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and session.config.getoption("parity_table"):
        write_table(session.config.getoption("parity_table"), session.config.stash[ERRORS])


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Real videos, annotations and golden detections that are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data beside the checkout (../shared/data) is absent")
    return SHARED


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is written whole fails at its last step."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)


@pytest.fixture(autouse=True, scope="module")
def no_programs_of_other_modules() -> Iterator[None]:
    """Compiled programs of all tests together take a worker process 4 GB."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def no_programs_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test calls keep their programs neither in the user's home nor for the next test."""
    monkeypatch.setattr("sptad_jax.program_cache.user_folder", lambda: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files come first, so that no worker of pytest-xdist is left alone with one of them at the end.

    Tests in which Orbax fails: what its threads and coroutines leave behind is collected with them, unwarned.
    """
    items.sort(key=lambda item: item.path.name not in SLOWEST)
    leftovers = ("PytestUnraisableExceptionWarning", "PytestUnhandledThreadExceptionWarning")
    for item in items:
        if "orbax_leftovers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings(*(f"ignore::pytest.{name}" for name in leftovers)))


@pytest.fixture
def orbax_leftovers() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(params=list(TOLERANCE))
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """float32 and float64 in turn; JAX admits float64 during the test that asks for it."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[[str, Any, Any], None]:
    """compare(what, found, expected): asserts that two trees of arrays agree, and notes how well for the table."""
    errors = request.config.stash[ERRORS]

    def compare(what: str, found: Any, expected: Any) -> None:
        dtype, error = largest_error(found, expected)
        assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e} in {dtype}"
        key = (str(request.path.relative_to(ROOT)), request.function.__name__, what, dtype)
        errors[key] = max(error, errors.get(key, 0.0))

    return compare
