"""Both passes on Beam's DirectRunner: what the local run gives, whatever breaks, and nothing done twice."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import beam, records
from data_prep.decode import MARKER, UNFINISHED, FrameSettings, decode_to_cache, load_cached
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import write_videos

SETTINGS = FrameSettings(fps=5, frame_size=32, flow="dis")
# TFDS asks protobuf 6, which Beam needs, for what protobuf 7 has no more
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def direct_runner():
    """Beam's own warnings at import are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("apache_beam", reason="Apache Beam is not installed (extra [beam])", exc_type=ImportError)
    return "DirectRunner"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos, one more under a name that is hard on paths and globs, and one that is none."""
    folder = tmp_path_factory.mktemp("videos [1]")
    write_videos(folder)
    (folder / "été 日本*.mp4").write_bytes((folder / "long.mp4").read_bytes())
    (folder / "broken.mp4").write_text("no video")
    return folder


def jobs_of(videos, cache):
    return {path.stem: (path, cache, SETTINGS) for path in sorted(videos.iterdir())}


def modified(cache):
    """When each finished video's files were written."""
    return {path: path.stat().st_mtime_ns for folder in cache.glob("*") if (folder / MARKER).is_file()
            and folder.suffix != UNFINISHED for path in folder.iterdir()}


def assert_as_local(results, videos, tmp_path):
    """Facts and frames against a plain loop over `decode_to_cache` in another folder."""
    local = {name: decode_to_cache(*job) for name, job in jobs_of(videos, tmp_path / "local").items()}
    assert set(results) == set(local)
    for name, expected in local.items():
        got = dict(results[name])
        if "error" in expected:
            assert got == expected
            continue
        frames = load_cached(pathlib.Path(got.pop("cache")), SETTINGS)
        expected_frames = load_cached(pathlib.Path(expected.pop("cache")), SETTINGS)
        assert got == expected
        for stream in ("rgb", "flow"):
            np.testing.assert_array_equal(frames[stream], expected_frames[stream])


def test_as_local_with_one_broken(direct_runner, videos, tmp_path):
    """Catches a lost or mixed-up video, and one broken file that ends the pipeline for all."""
    cache = tmp_path / "out [2]*" / "_decoded"
    results = dict(beam.run_jobs(jobs_of(videos, cache), cache, direct_runner))
    assert_as_local(results, videos, tmp_path)
    assert [name for name, result in results.items() if "error" in result] == ["broken"]
    assert "broken.mp4: cannot be decoded" in results["broken"]["error"]


def test_goes_on_where_it_stopped(direct_runner, videos, tmp_path):
    """Videos of an earlier run are not decoded again, and a repaired one does not inherit its old error."""
    cache = tmp_path / "_decoded"
    jobs = jobs_of(videos, cache)
    mended = tmp_path / "mended.mp4"
    mended.write_text("no video")
    first = dict(beam.run_jobs({"short": jobs["short"], "mended": (mended, cache, SETTINGS)}, cache, direct_runner))
    assert "error" in first["mended"]
    before = modified(cache)
    assert len(before) == 3
    mended.write_bytes((videos / "middle.mp4").read_bytes())
    results = dict(beam.run_jobs(jobs | {"mended": (mended, cache, SETTINGS)}, cache, direct_runner))
    assert results.pop("mended")["num_frames"] == 20
    assert_as_local(results, videos, tmp_path)
    assert before.items() <= modified(cache).items()


def test_killed(direct_runner, videos, tmp_path):
    """Kill -9 between two videos: the next run keeps what is finished and does the rest."""
    cache = tmp_path / "_decoded"
    script = (  # the runner works in this process, so what is slowed here is slow there
        "import pathlib, sys, time\n"
        "from data_prep import beam\n"
        "from data_prep.decode import FrameSettings\n"
        "decode = beam.decode_to_cache\n"
        "beam.decode_to_cache = lambda *job: (decode(*job), time.sleep(0.5))[0]\n"
        "cache = pathlib.Path(sys.argv[2])\n"
        "settings = FrameSettings(fps=5, frame_size=32, flow='dis')\n"
        "jobs = {path.stem: (path, cache, settings) for path in pathlib.Path(sys.argv[1]).iterdir()}\n"
        "list(beam.run_jobs(jobs, cache, 'DirectRunner'))\n")
    with subprocess.Popen([sys.executable, "-c", script, videos, cache], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
        until = time.monotonic() + 300
        while not modified(cache) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = modified(cache)
    assert 0 < len({path.parent for path in before}) < 5
    results = dict(beam.run_jobs(jobs_of(videos, cache), cache, direct_runner))
    assert_as_local(results, videos, tmp_path)
    assert before.items() <= modified(cache).items()


def test_worker_failures_are_data(direct_runner, videos, tmp_path, monkeypatch):
    """A worker that sees no file, or fails in any other way, costs one video; one that writes elsewhere is told of."""
    cache = tmp_path / "_decoded"
    jobs = jobs_of(videos, cache)
    decode = beam.decode_to_cache

    def fail(path, cache_dir, settings):
        if path.stem == "long":
            raise MemoryError("no room")
        return decode(path, tmp_path / "own disk" if path.stem == "middle" else cache_dir, settings)

    monkeypatch.setattr(beam, "decode_to_cache", fail)
    gone = {"a/gone": (tmp_path / "gone.mp4", cache, SETTINGS)}
    results = dict(beam.run_jobs(jobs | gone, cache, direct_runner))
    errors = {name: result["error"] for name, result in results.items() if "error" in result}
    assert set(errors) == {"broken", "long", "middle", "a/gone"} and len(results) == 7
    assert "MemoryError" in errors["long"] and "'long'" in errors["long"]
    assert "gone.mp4" in errors["a/gone"]
    assert "same paths" in errors["middle"]


def test_workers_have_another_folder(tmp_path, monkeypatch):
    """Relative paths mean nothing on another machine: what is handed out must be absolute."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("short.mp4").touch()
    handed = []

    def collect(items, *rest):
        handed.extend(items)
        yield

    monkeypatch.setattr(beam, "_run_pipeline", collect)
    cache = pathlib.Path("_decoded")
    list(beam.run_jobs({"short": (pathlib.Path("short.mp4"), cache, SETTINGS)}, cache, "any"))
    assert handed == [("short", (tmp_path / "short.mp4", tmp_path / cache, SETTINGS))]
    handed.clear()
    splits = {"training": [records.Record("short", cache, 0)]}
    with pytest.raises(UserError, match="same path"):
        beam.write_records(pathlib.Path("records/1.0.0"), splits, SETTINGS, "any")
    assert [shard.path for shard in handed] == [tmp_path / "records" / "1.0.0" / "records-training.array_record-00000"]


def test_runner_that_does_not_block(direct_runner, videos, tmp_path, monkeypatch):
    """A cluster's runner answers at once: results must come while it works, each once, and none be lost at the end."""
    import apache_beam

    cache = tmp_path / "_decoded"
    jobs = jobs_of(videos, cache) | {"gone": (tmp_path / "gone.mp4", cache, SETTINGS)}
    states = ["RUNNING", "RUNNING", "RUNNING", "DONE"]

    class Result:
        @property
        def state(self):
            todo = {"DONE": list(jobs)}.get(states[0], list(jobs)[:2])
            for name in todo:
                beam._decode((name, jobs[name]), cache / beam.ERRORS_DIR)
            return states.pop(0)

        def wait_until_finish(self):
            assert not states

    monkeypatch.setattr(apache_beam.Pipeline, "run", lambda self: Result())
    monkeypatch.setattr(beam, "POLL_SEC", 0)
    early = [(name, len(states)) for name, _ in beam.run_jobs(jobs, cache, direct_runner)]
    assert [name for name, _ in early] == list(jobs)
    assert [left > 0 for _, left in early] == [True, True, False, False, False, False, False]


@pytest.fixture(scope="module")
def cached(videos, tmp_path_factory):
    """Videos of the first pass, split over two subsets: records of each, of 1 to 3 chunks a video."""
    cache = tmp_path_factory.mktemp("decoded")
    settings = FrameSettings(fps=10, frame_size=32, flow="dis")
    splits = {"training": [], "testing": []}
    for name, split in {"long": "training", "unseen": "testing", "short": "training", "middle": "training"}.items():
        result = decode_to_cache(videos / f"{name}.mp4", cache, settings)
        chunks = range(math.ceil(result["num_frames"] / 32))
        splits[split] += [records.Record(name, pathlib.Path(result["cache"]), chunk) for chunk in chunks]
    return splits, settings


@pytest.mark.parametrize("shard_records", [512, 4, 1])
def test_write_records(direct_runner, cached, tmp_path, monkeypatch, shard_records):
    """Records as the cache holds them, in order, and files and bytes as the local run writes them.

    Catches a shuffle, a shard in the wrong place or with the wrong number, and metadata that do not open.
    """
    monkeypatch.setattr(records, "SHARD_RECORDS", shard_records)
    splits, settings = cached
    folder = tmp_path / "records [3]" / "1.0.0"
    files = beam.write_records(folder, splits, settings, direct_runner)
    for split, expected in splits.items():
        written = tfds.builder_from_directory(folder).as_data_source(split)
        assert len(written) == len(expected) == {"training": 6, "testing": 3}[split]
        for record, row in zip(written, expected):
            assert (record["video"].decode(), record["chunk"]) == (row.video, row.chunk)
            for stream, frames in load_cached(row.cache, settings).items():
                np.testing.assert_array_equal(record[stream], frames[32 * row.chunk:32 * row.chunk + 32])
    local = tmp_path / "local" / "records [3]" / "1.0.0"
    assert [p.name for p in records.write_records(local, splits, settings)] == [p.name for p in files]
    assert {p.name: p.read_bytes() for p in local.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_write_fails(direct_runner, cached, tmp_path):
    """Frames that have gone end in one sentence, and no half file stays under a record file's name."""
    splits, settings = cached
    folder = tmp_path / "records" / "1.0.0"
    gone = records.Record("gone", tmp_path / "gone", 0)
    with pytest.raises(UserError, match="the DirectRunner failed"):
        beam.write_records(folder, {"training": [*splits["training"], gone]}, settings, direct_runner)
    assert not list(folder.glob("records*"))


@pytest.mark.parametrize(
    ("runner", "options", "words"),
    [("NoRunner", [], "the NoRunner failed"), ("DirectRunner", ["--direct_num_workers=x"], "--beam-options")])
def test_bad_arguments(direct_runner, videos, tmp_path, runner, options, words):
    """One sentence for what Beam refuses, even where it would end the process itself."""
    with pytest.raises(UserError, match=words):
        list(beam.run_jobs(jobs_of(videos, tmp_path), tmp_path, runner, options))


def test_without_beam(videos, tmp_path, monkeypatch):
    """A plain installation has no Beam: the sentence names the extra."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"\[data,beam\]"):
        list(beam.run_jobs(jobs_of(videos, pathlib.Path(tmp_path)), tmp_path, "DirectRunner"))
