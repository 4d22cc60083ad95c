"""The dataset folder as a whole: its manifest, and that a kill at any moment costs nothing but the time."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import av
import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_prep import builder
from data_prep.custom import main, prepare
from data_prep.decode import FrameSettings, decode_to_cache, is_cached, load_cached
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.video import decode_video
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import VIDEOS, write_annotations, write_videos

SETTINGS = FrameSettings(fps=5, frame_size=32, flow="dis")
OPTIONS = ["--fps", "5", "--frame-size", "32", "--flow", "dis"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with videos/ and annotations.json."""
    folder = tmp_path_factory.mktemp("source")
    write_videos(folder / "videos")
    write_annotations(folder / "annotations.json")
    return folder


@pytest.fixture(scope="module")
def whole(source):
    """The dataset as a run that nobody disturbs leaves it."""
    prepare(source / "videos", source / "annotations.json", source / "whole" / "set", SETTINGS)
    return source / "whole" / "set"


def read_folder(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest(source, whole):
    """Counts, hours, bytes, checksums and native rates against the files themselves and FFmpeg's own numbers."""
    info = json.loads((whole / "dataset.json").read_text())
    records = sorted((whole / "records").rglob("*array_record*"))
    assert info["format_version"] == 2 and info["bytes"] == sum(path.stat().st_size for path in records)
    assert info["checksums"] == {path.relative_to(whole).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                                 for path in [*records, whole / "ground_truth.json"]}
    assert info["hours"] == pytest.approx(sum(count for _, count, _ in VIDEOS.values()) / 10 / 3600)
    assert {name: len(ArrayRecordDataSource([str(path)])) for name, path in zip(("testing", "training"), records)} == {
        name: subset["num_records"] for name, subset in info["subsets"].items()}
    for entry in info["videos"]:
        with av.open(str(source / "videos" / f"{entry['name']}.mp4")) as container:
            stream = container.streams.video[0]
            assert entry["source_frames"] == stream.frames == VIDEOS[entry["name"]][1]
            assert entry["source_fps"] == pytest.approx(float(stream.average_rate))


def start(source, output, processes):
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.custom", "--videos", source / "videos", "--annotations",
         source / "annotations.json", "--output", output, "--processes", str(processes), *OPTIONS],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def kill_after(process, output, changes):
    """SIGKILL after so many new files, folders or steps of growth; False where the process ended before."""
    seen = set()
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        for folder, _, names in os.walk(output):
            seen.add(folder)
            for name in names:
                try:
                    seen.add((folder, name, os.path.getsize(os.path.join(folder, name)) >> 14))
                except OSError:
                    continue  # renamed meanwhile
        if len(seen) >= changes:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("processes", [1, 2])
def test_killed(source, whole, tmp_path, processes):
    """Kill -9 at random moments and start again: the folder is byte for byte that of an undisturbed run.

    Catches half-written files taken for whole, litter, workers that outlive the command and write on, and whatever
    differs between two processes.
    """
    output = tmp_path / "set"
    draw = random.Random(processes)
    kills = sum(kill_after(start(source, output, processes), output, draw.randint(2, 25)) for _ in range(3 - processes))
    assert kills
    end = start(source, output, processes)
    assert end.wait(120) == 0, end.communicate()[1]
    end.communicate()
    assert read_folder(output) == read_folder(whole)


@pytest.mark.parametrize("step", ["write_shard", "write_metadata", "ground_truth.json", "dataset.json", "rmtree"])
def test_stopped_at_each_step_of_the_end(source, whole, tmp_path, monkeypatch, step):
    """The steps after decoding last milliseconds here, so each is hit on purpose, half-written files included."""
    output = tmp_path / "set"

    def stop(path, *args, **kwargs):
        raise KeyboardInterrupt

    def stop_at(path, value):
        if path.name == step:
            path.with_name(f".{path.name}.77.tmp").write_text("{")
            raise KeyboardInterrupt
        return write_json(path, value)

    write_json = builder.write_json
    with monkeypatch.context() as patch:
        if step in ("write_shard", "write_metadata"):
            patch.setattr(f"data_prep.records.{step}", stop)
        elif step == "rmtree":
            rmtree = shutil.rmtree
            patch.setattr(shutil, "rmtree", lambda path, *a, **k: rmtree(path, *a, **k) if a or k else stop(path))
        else:
            patch.setattr(builder, "write_json", stop_at)
        with pytest.raises(KeyboardInterrupt):
            prepare(source / "videos", source / "annotations.json", output, SETTINGS)
    prepare(source / "videos", source / "annotations.json", output, SETTINGS)
    assert read_folder(output) == read_folder(whole)


def test_half_a_cache_is_not_taken(source, tmp_path):
    """A folder without its marker, one under its unfinished name, and one cut short by a power failure."""
    path, cache = source / "videos" / "long.mp4", tmp_path / "cache"
    facts = decode_to_cache(path, cache, SETTINGS)
    (place,) = cache.iterdir()
    expected = load_cached(place, SETTINGS)["flow"].copy()
    assert is_cached(path, cache, SETTINGS)

    def check_again():
        assert not is_cached(path, cache, SETTINGS)
        assert decode_to_cache(path, cache, SETTINGS) == facts
        np.testing.assert_array_equal(load_cached(place, SETTINGS)["flow"], expected)

    (place / "video.json").unlink()
    check_again()
    (place / "video.json").write_text("{")
    check_again()
    os.truncate(place / "flow", 1000)
    check_again()
    place.rename(place.with_name(f"{place.name}.77.unfinished"))
    check_again()


def test_a_quicker_worker(source, tmp_path, monkeypatch):
    """Beam gives a slow video to two workers: the second to finish must neither fail nor disturb the first."""
    path, cache = source / "videos" / "short.mp4", tmp_path / "cache"
    write = builder.decode_to_cache.__globals__["_write_streams"]

    def slow(folder, *args):
        facts = write(folder, *args)
        monkeypatch.undo()
        assert "error" not in decode_to_cache(path, cache, SETTINGS)
        return facts

    monkeypatch.setattr("data_prep.decode._write_streams", slow)
    assert decode_to_cache(path, cache, SETTINGS)["num_frames"] == 10
    assert len(list(cache.iterdir())) == 1 and is_cached(path, cache, SETTINGS)


def test_changed_video_is_decoded_again(source, tmp_path):
    """A file that was replaced under its name must not leave the frames of the old one."""
    path, cache = tmp_path / "a.mp4", tmp_path / "cache"
    shutil.copy(source / "videos" / "short.mp4", path)
    decode_to_cache(path, cache, SETTINGS)
    shutil.copy(source / "videos" / "middle.mp4", path)
    assert not is_cached(path, cache, SETTINGS)
    cached = load_cached(path.parent / "cache" / os.path.basename(decode_to_cache(path, cache, SETTINGS)["cache"]),
                         SETTINGS)
    np.testing.assert_array_equal(cached["rgb"], decode_video(path, 5, 32).frames)


def test_what_was_decoded_before_the_option_is_found(source, tmp_path):
    """Days of optical flow done again because a new option, left at its default, changed the names of the cache."""
    path, cache = source / "videos" / "short.mp4", tmp_path / "cache"
    decode_to_cache(path, cache, SETTINGS)
    before = json.dumps([[[os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns]],
                         {name: value for name, value in SETTINGS.describe().items() if name != "fit"}, 0])
    assert [folder.name for folder in cache.iterdir()] == [hashlib.sha256(before.encode()).hexdigest()[:24]]
    assert not is_cached(path, cache, dataclasses.replace(SETTINGS, fit="crop"))


def test_full_disk_while_records_are_written(source, tmp_path):
    """ArrayRecord's own error, which is no OSError: a traceback in the pass that needs the most room. A limit on the
    size of files stands for a full disk; nothing half-written stays."""
    code = ("import resource, signal, sys; from data_prep import builder; from data_prep.custom import main\n"
            "def limit(*args, **options):\n"
            "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "    return write(*args, **options)\n"
            "write, builder.write_records = builder.write_records, limit\n"
            "sys.exit(main(sys.argv[1:]))")
    done = subprocess.run(
        [sys.executable, "-c", code, "--videos", str(source / "videos"), "--annotations",
         str(source / "annotations.json"), "--output", str(tmp_path / "set"), *OPTIONS],
        capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "the disk has room" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "set").rglob("*.tmp") if path.is_file()]


def test_memory_does_not_grow_with_the_video(tmp_path):
    """An hour of frames held at once would be gigabytes for each process: the peak must be that of a short video."""
    peaks = []
    for count in (130, 650):
        path = tmp_path / f"{count}.npy"
        np.save(path, np.zeros((count, 32, 32, 3), np.uint8))
        tracemalloc.start()
        decode_to_cache(path, tmp_path / "cache", FrameSettings(frame_size=32, flow="dis", rgb_from="x"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_folder_of_an_earlier_version(source, whole, tmp_path, capsys):
    """Format 1 lacks what check and others read: told, with what to do, and not overwritten."""
    output = tmp_path / "set"
    shutil.copytree(whole, output)
    info = json.loads((output / "dataset.json").read_text())
    (output / "dataset.json").write_text(json.dumps(info | {"format_version": 1}))
    assert main(["--videos", str(source / "videos"), "--annotations", str(source / "annotations.json"), "--output",
                 str(output), *OPTIONS]) == 2
    assert "is of format 1, this version writes 2; delete the folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="is of format 1, this version reads 2"):
        open_dataset(output)


def test_ambiguous_stretches_are_kept(source, tmp_path):
    """THUMOS14's Ambiguous reaches the ground truth, cut at the video's end; one beyond it does not."""
    content = json.loads((source / "annotations.json").read_text())
    content["database"]["short"]["ambiguous"] = [[0.5, 1.0], [1.5, 9.0], [5.0, 9.0]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    prepare(source / "videos", tmp_path / "a.json", tmp_path / "set", FrameSettings(fps=5, frame_size=32, flow="none"))
    truth = json.loads((tmp_path / "set" / "ground_truth.json").read_text())["database"]
    assert truth["short"]["ambiguous"] == [[0.5, 1.0], [1.5, pytest.approx(2.0)]] and "ambiguous" not in truth["long"]


@pytest.mark.filterwarnings("ignore")  # of Beam's own modules
def test_beam_gives_the_same_bytes(source, whole, tmp_path, monkeypatch):
    """Both passes on a runner, from relative paths: catches work lost on the way to the folder, or done otherwise."""
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed (extra [beam])", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    assert main(["--videos", os.path.relpath(source / "videos"), "--annotations", str(source / "annotations.json"),
                 "--output", "set", "--beam-runner", "DirectRunner", "--beam-options=--direct_num_workers=1",
                 *OPTIONS]) == 0
    assert read_folder(tmp_path / "set") == read_folder(whole)
