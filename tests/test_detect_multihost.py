"""`sptad detect --multihost`: videos spread over processes give what one process finds, and nothing waits for ever."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sptad_jax.cli import main
from sptad_jax.data.video import write_video
from sptad_jax.inference.command import deal
from tests.reference import processes
from tests.reference.detector_run import make_run
from tests.reference.tiny_training import quick_compilation

# Process VICTIM is killed when it begins its second video.
PROGRAM = """
import os, signal
from sptad_jax.cli import program
from sptad_jax.inference import detect
real, count = detect.detect_video, 0
def detect_video(*arguments):
    global count
    count += 1
    if count == 2 and os.environ["PROCESS"] == os.environ.get("VICTIM"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
detect.detect_video = detect_video
program()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and videos/ with five videos, two of one name, and a text that calls itself a video."""
    root = make_run(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    for name, count in (("a.mp4", 70), ("b.mp4", 20), ("below/a.mp4", 30), ("c.mp4", 45), ("\u00e9 d.mp4", 12)):
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, rng.integers(0, 256, (count, 20, 24, 3), np.uint8), 10)
    (root / "videos" / "text.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def detect_in_two(folder, cache, *options, devices=1, **variables):
    """-> (exit code, standard output, standard error) of both processes."""
    arguments = ["detect", str(folder / "videos"), "--checkpoint", str(folder), *map(str, options)]
    return processes.finish(processes.start([arguments], cache, devices, processes=2, program=PROGRAM,
                                            variables=variables), timeout=120)  # fmt: skip


def test_two_processes_find_what_one_finds(folder, cache, tmp_path, capsys):
    """Videos lost, doubled, or in another order; names that both processes give away; a share that is not gathered, or
    windows that are mixed up when three devices share them (the batch of 2 becomes one of 3); a broken video that one
    process knows of alone; files of one video that nobody writes."""
    outputs = [[option for name in ("a.json", "a.csv", "a.vtt") for option in ("--output", tmp_path / side / name)]
               for side in ("one", "two")]  # fmt: skip
    with quick_compilation():
        code = main(["detect", str(folder / "videos"), "--checkpoint", str(folder), *map(str, outputs[0])])
    assert code == 2 and "1 of 6 videos" in capsys.readouterr().err
    results = detect_in_two(folder, cache, *outputs[1], "--report", tmp_path / "page", devices=3)
    assert [code for code, *_ in results] == [2, 2], results
    assert sum(err.count("text.mp4") for *_, err in results) == 1
    assert ["1 of 6 videos" in err for *_, err in results] == [True, False]
    assert all(f"process {index} of 2: 3 of 6 devices" in out for index, (_, out, _) in enumerate(results))
    assert all(out.count(" s)\n") >= 2 for _, out, _ in results)  # both had videos to detect in
    assert sum(out.count(" s)\n") for _, out, _ in results) == 5

    one, two = (json.loads((tmp_path / side / "a.json").read_text())["results"] for side in ("one", "two"))
    assert list(one) == list(two) and len(one) == 5
    for name in one:
        assert len(one[name]) == len(two[name]) > 3
        assert [row["label"] for row in one[name]] == [row["label"] for row in two[name]]
        for key in ("segment", "score"):
            np.testing.assert_allclose(*([row[key] for row in side[name]] for side in (one, two)), rtol=1e-4, atol=1e-4)
    with open(tmp_path / "two" / "a.csv", encoding="utf-8", newline="") as file:
        assert [row["video"] for row in csv.DictReader(file)] == [name for name in two for _ in two[name]]
    assert len({path.name for path in (tmp_path / "two").iterdir()}) == 2 + 5
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    assert (tmp_path / "page").is_dir()


def test_one_of_two_is_killed(folder, cache, tmp_path):
    """A process that waits for ever for the videos of a dead one; what the living one found, lost."""
    (dead, *_), (code, _, err) = reversed(detect_in_two(folder, cache, "--output", tmp_path / "a.json", VICTIM="1"))
    assert dead == -9 and code != 0 and "cannot go on with the others" in err
    (path,) = tmp_path.iterdir()
    assert path.name == "a.process-0.json" and len(json.loads(path.read_text())["results"]) >= 1


@given(st.lists(st.integers(0, 1000)), st.integers(1, 9))
def test_shares(sizes, count):
    """Videos that nobody takes or two take; one process with all the long ones. No share of a largest-first deal is
    above the mean by more than one video."""
    shares = deal(sizes, count)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes))) and len(shares) == count
    assert all(share == sorted(share) for share in shares)
    sums = [sum(sizes[index] + 1 for index in share) for share in shares]
    assert max(sums) - min(sums) <= max(sizes, default=0) + 1
