"""Prepared datasets: stored frames against decoding anew, and every misfit told."""

import concurrent.futures
import json
import pickle
import shutil
import threading
import time

import numpy as np
import pytest

from sptad_jax.config import DataConfig
from sptad_jax.data.datasets import check_fit, make_video_targets, open_dataset
from sptad_jax.data.optical_flow import compute_flow
from sptad_jax.data.video import decode_video
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import VIDEOS, make_tiny_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def decoded(folder):
    """All streams of all videos, decoded without the dataset."""
    rgb = {name: decode_video(folder.parent / "videos" / f"{name}.mp4", 10, 36).frames for name in VIDEOS}
    return {name: {"rgb": frames, "flow": compute_flow(frames, "dis")} for name, frames in rgb.items()}


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_frames_equal_decoding(folder, decoded, cache_bytes):
    """Catches wrong record offsets, chunk borders, subsets and streams: every range must equal the decoded frames."""
    dataset = open_dataset(folder)
    dataset.cache_bytes = cache_bytes
    for i, video in enumerate(dataset.videos):
        expected = decoded[video.name]
        n = video.num_frames
        assert n == VIDEOS[video.name][1]
        for start, stop in [(0, n), (0, 1), (n - 1, n), (n // 2, n // 2 + 3), (5, min(n, 37)), (min(31, n - 2), n)]:
            frames = dataset.read_frames(i, start, stop)
            assert set(frames) == {"rgb", "flow"}
            for name in frames:
                np.testing.assert_array_equal(frames[name], expected[name][start:stop])
    assert bool(dataset._cache) == bool(cache_bytes)


def test_threads_open_it_one_after_another(folder, decoded, monkeypatch):
    """Two threads that import parts of TFDS at once, by opening a dataset or by their first record, which on Python
    3.11 could wait for each other for ever; a dataset that each of them opens anew; frames that go wrong where several
    threads read first."""
    import tensorflow_datasets as tfds

    inside, most, ready = [], [], threading.Barrier(4)
    real = tfds.builder_from_directory

    class Slow:
        """What imports at its first use: a builder, and a source before its first record."""

        def __init__(self, wrapped):
            self.wrapped, self.used = wrapped, False

        def as_data_source(self, split):
            return Slow(watch(self.wrapped.as_data_source)(split=split))

        def __getitem__(self, index):
            if self.used:
                return self.wrapped[index]
            record = watch(self.wrapped.__getitem__)(index)
            self.used = True
            return record

    def watch(call):
        def wrapper(*args, **kwargs):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return call(*args, **kwargs)
        return wrapper

    monkeypatch.setattr(tfds, "builder_from_directory", lambda path: Slow(watch(real)(path)))
    dataset = open_dataset(folder)
    dataset.cache_bytes = 0

    def read(i):
        ready.wait()
        return dataset.read_frames(i, 0, 10, ["rgb"])["rgb"]

    indices = [i % len(dataset.videos) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for i, frames in zip(indices, threads.map(read, indices)):
            np.testing.assert_array_equal(frames, decoded[dataset.videos[i].name]["rgb"][:10])
    assert max(most) == 1 and len(most) == 3 * len({dataset.videos[i].subset for i in indices}), "opened once a subset"


def test_streams_and_ranges(folder):
    """Only the streams asked for; a range outside of the video is a mistake of the caller, not an empty answer."""
    dataset = open_dataset(folder)
    assert set(dataset.read_frames(0, 2, 4, ["flow"])) == {"flow"}
    for start, stop in [(-1, 3), (5, 5), (70, 76)]:
        with pytest.raises(ValueError, match="'long'"):
            dataset.read_frames(0, start, stop)


def test_answers_may_be_written_to(folder):
    """A caller that changes its frames must not change what the next caller reads."""
    dataset = open_dataset(folder)
    first = dataset.read_frames(0, 0, 8)["rgb"]
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(dataset.read_frames(0, 0, 8)["rgb"], kept)


def test_pickle(folder):
    """Grain's workers receive the dataset by pickle; an open reader inside would fail there."""
    dataset = open_dataset(folder)
    dataset.read_frames(0, 0, 3)
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.read_frames(1, 0, 3)["rgb"], dataset.read_frames(1, 0, 3)["rgb"])


def test_description(folder):
    """What training and detection read of a dataset."""
    dataset = open_dataset(folder)
    assert dataset.classes == ("jump", "run") and dataset.frame_size == 36 and dataset.streams == ("rgb", "flow")
    assert [dataset.videos[i].name for i in dataset.indices_of("training")] == ["long", "short", "middle"]
    flow = {"method": "dis", "bound": 20.0, "size": 36}
    assert dataset.source == {"fps": 10, "max_frames": 0, "frame_size": 36, "fit": "stretch", "flow": flow}
    ground_truth = json.loads(dataset.ground_truth_path.read_text())["database"]
    assert list(ground_truth) == list(VIDEOS)
    assert ground_truth["middle"]["annotations"][1] == {"segment": [1.0, 3.5], "label": "jump"}
    with pytest.raises(UserError, match="it has training, testing"):
        dataset.indices_of("validation")


def test_targets_in_frames_and_class_order(folder):
    """data.classes fixes the order of logits: labels must follow it, and seconds become frames of 10 a second."""
    dataset = open_dataset(folder, DataConfig(classes=("run", "jump")))
    targets = make_video_targets(dataset, "training")
    assert [t.index for t in targets] == [0, 1, 2]
    np.testing.assert_allclose(targets[0].segments_frame, [[5, 20], [30, 65]])
    assert targets[0].labels.tolist() == [0, 1]
    assert open_dataset(folder).classes == ("jump", "run")


def test_misfits(folder):
    """Each would otherwise end in a shape error, or in training on wrong classes."""
    for classes, words in [(("run",), "has 'jump'"), (("run", "jump", "sit"), "lacks 'sit'")]:
        with pytest.raises(UserError, match=words):
            open_dataset(folder, DataConfig(classes=classes))
    dataset = open_dataset(folder)
    with pytest.raises(UserError, match="crop_size"):
        check_fit(dataset, DataConfig(crop_size=64), ("rgb",))
    dataset.info["streams"] = ["rgb"]
    with pytest.raises(UserError, match="no flow"):
        check_fit(dataset, DataConfig(crop_size=32), ("rgb", "flow"))


def test_folders_that_are_no_dataset(folder, tmp_path):
    """Wrong path, unfinished, damaged, of another version, without records: a sentence that says what to do."""
    for path in ("", tmp_path / "none"):
        with pytest.raises(UserError, match="dataset_dir"):
            open_dataset(path)
    with pytest.raises(UserError, match="did not finish"):
        open_dataset(tmp_path)
    for content, words in [("{", "damaged"), ("[]", "format"), ('{"format_version": 99}', "format 99"),
                           ('{"format_version": 1, "videos": []}', "format 1, .* prepare the dataset again"),
                           ('{"format_version": 2}', "damaged"), ('{"format_version": 2, "videos": [{}]}', "damaged")]:
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=words):
            open_dataset(tmp_path)
    shutil.copy(folder / "dataset.json", tmp_path / "dataset.json")
    with pytest.raises(UserError, match="records cannot be opened"):
        open_dataset(tmp_path).read_frames(0, 0, 1)


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_damaged_records(folder, tmp_path, damage):
    """A traceback of the reading library, or frames that are not those of the video, where a record file is damaged."""
    shutil.copytree(folder, tmp_path / "copy")
    path = next((tmp_path / "copy").rglob("*training*array_record*"))
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    dataset = open_dataset(tmp_path / "copy")
    with pytest.raises(UserError, match=r"prepare|data_prep\.check"):
        for i in dataset.indices_of("training"):
            dataset.read_frames(i, 0, dataset.videos[i].num_frames)
