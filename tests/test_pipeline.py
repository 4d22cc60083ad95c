"""Batches: contents against the dataset, and an order that depends on nothing but the seed."""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sptad_jax.config import DataConfig, TrainConfig
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.pipeline import make_test_batches, make_training_batches, mix_windows
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import make_tiny_dataset

DATA = DataConfig(num_frames=32, crop_size=32, stride_train=4, stride_test=16, max_targets=5, train_subset="training",
                  test_subset="testing")
TRAIN = TrainConfig(batch_size=6, seed=3)
BOTH = ("rgb", "flow")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(make_tiny_dataset(tmp_path_factory.mktemp("tiny")))


def take(batches, count):
    return list(itertools.islice(batches, count))


def places(batches):
    """(video, start) of each window, batch by batch."""
    return [list(zip(b["video_index"].tolist(), b["start_frame"].tolist())) for b in batches]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_contents(dataset):
    """Keys, shapes, dtypes; frames of the right window, zero bytes after the end of a short video; targets."""
    batches = make_training_batches(dataset, DATA, TRAIN, BOTH)
    seen = set()
    for batch in take(batches, batches.steps_per_epoch):
        facts = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
        assert facts == {
            "rgb": ((6, 32, 36, 36, 3), "uint8"), "flow": ((6, 32, 36, 36, 2), "uint8"),
            "segments_norm": ((6, 5, 2), "float32"), "labels": ((6, 5), "int32"), "valid": ((6, 5), "bool"),
            "clip_labels": ((6, 2), "float32"), "num_frames": ((6,), "int32"), "video_index": ((6,), "int32"),
            "start_frame": ((6,), "int32")}
        for i in range(6):
            video, start, count = (int(batch[n][i]) for n in ("video_index", "start_frame", "num_frames"))
            seen.add((video, start))
            frames = dataset.read_frames(video, start, start + count)
            for name in BOTH:
                np.testing.assert_array_equal(batch[name][i, :count], frames[name])
                assert not batch[name][i, count:].any()
            for (a, b), label in zip(batch["segments_norm"][i][batch["valid"][i]],
                                     batch["labels"][i][batch["valid"][i]]):
                inside = [(max(0, (r.segment_sec[0] * 10 - start) / 32), min(1, (r.segment_sec[1] * 10 - start) / 32))
                          for r in dataset.videos[video].annotations if r.label == dataset.classes[label]]
                assert min(abs(a - s) + abs(b - e) for s, e in inside) < 1e-5
    assert len({video for video, _ in seen}) > 1


def test_speed_jitter(dataset):
    """Frames, targets and flow of different speeds; a speed drawn once for all; one that leaves its range. No
    two frames of a video are alike, which tells the frames that were read."""
    jittered = dataclasses.replace(DATA, speed_jitter=0.4)
    factors, spreads = [], []
    for batch in take(make_training_batches(dataset, jittered, TRAIN, BOTH), 12):
        of_longest = []
        for i in range(6):
            video = dataset.videos[int(batch["video_index"][i])]
            frames = dataset.read_frames(int(batch["video_index"][i]), 0, video.num_frames)
            if video.num_frames < 32:
                assert batch["num_frames"][i] == video.num_frames
                continue
            whole = frames["rgb"].astype(int)
            read = np.array([np.abs(whole - frame).sum(axis=(1, 2, 3)).argmin() for frame in batch["rgb"][i]])
            np.testing.assert_array_equal(batch["rgb"][i], frames["rgb"][read])
            factor = np.polyfit(np.arange(32), read, 1)[0]
            factors.append(factor)
            if video.name == "long" and abs(factor - 1) > 0.03:  # which no window exceeds; 1: refused when stretched
                of_longest.append(factor)
            grown = np.clip((frames["flow"][read] - 127.5) * factor + 127.5, 0, 255)
            np.testing.assert_allclose(batch["flow"][i], grown, atol=0.5 + 127.5 * 0.03)
            for (a, b), label in zip(batch["segments_norm"][i][batch["valid"][i]],
                                     batch["labels"][i][batch["valid"][i]]):
                seconds = (read[0] + np.array([a, b]) * 32 * factor) / 10
                (known,) = (row.segment_sec for row in video.annotations if row.label == dataset.classes[label])
                cut = np.clip(known, read[0] / 10, (read[0] + 32 * factor) / 10)
                np.testing.assert_allclose(seconds, cut, atol=0.15)
        spreads.append(np.ptp(of_longest or [0]))
    assert max(spreads) > 0.2
    assert 0.65 < min(factors) < 0.8 and 1.15 < max(factors) < 1.52


def test_epochs_are_permutations(dataset):
    """Every window once an epoch, in another order in the next; a window lost at an epoch's end would show here."""
    batches = make_training_batches(dataset, DATA, TRAIN, ("rgb",))
    n = batches.num_windows
    assert n % 6 and batches.steps_per_epoch == n // 6  # the interesting case: epochs that share a batch
    order = [place for batch in places(take(batches, n)) for place in batch]  # six epochs
    epochs = [order[i * n:(i + 1) * n] for i in range(6)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_mix_windows():
    """Sums that wrap around in uint8, targets that overwrite one another or are lost, a window of another length mixed
    with padding, more targets than slots, an input that is written into."""
    def window(seed, count, num_frames=4):
        rng = np.random.default_rng(seed)
        valid = np.arange(3) < count
        frames = rng.integers(0, 256, (4, 2, 2, 5), np.uint8)
        return {"rgb": frames[..., :3], "flow": frames[..., 3:], "valid": valid,
                "segments_norm": rng.random((3, 2), np.float32) * valid[:, None],
                "labels": rng.integers(1, 9, 3) * valid, "clip_labels": rng.integers(0, 2, 9).astype(np.float32),
                "num_frames": np.int32(num_frames), "video_index": np.int32(seed), "start_frame": np.int32(7 * seed)}

    for first, second in [(window(0, 1), window(1, 2)), (window(2, 0), window(3, 3)), (window(4, 2), window(5, 0))]:
        mixed, untouched = mix_windows(first, second), window(int(first["video_index"]), int(first["valid"].sum()))
        assert_same([first], [untouched])
        for at in np.ndindex(4, 2, 2):
            for channel in range(3):
                mean = (int(first["rgb"][at][channel]) + int(second["rgb"][at][channel])) / 2
                assert 0 <= mixed["rgb"][at][channel] - mean <= 0.5
            for channel in range(2):
                total = sum(int(one["flow"][at][channel]) - 128 for one in (first, second))
                assert mixed["flow"][at][channel] == min(max(total, -128), 127) + 128
        rows = [(*one["segments_norm"][i], one["labels"][i]) for one in (first, second) for i in range(3)
                if one["valid"][i]]
        assert [(*s, v) for s, v, ok in zip(mixed["segments_norm"], mixed["labels"], mixed["valid"]) if ok] == rows
        np.testing.assert_array_equal(mixed["clip_labels"] > 0, (first["clip_labels"] + second["clip_labels"]) > 0)
        assert {name: mixed[name].dtype for name in mixed} == {name: np.asarray(first[name]).dtype for name in first}
        assert (mixed["video_index"], mixed["start_frame"]) == (first["video_index"], first["start_frame"])
    assert mix_windows(window(0, 2), window(1, 2))["valid"].sum() == 2
    assert_same([mix_windows(window(0, 1), window(1, 1, num_frames=3))], [window(0, 1)])


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_mix_prob(dataset, prob):
    """A share of mixed windows other than asked; partners that are always of the same batch or the same place; windows
    mixed with what no training window shows; mixed test windows."""
    config = dataclasses.replace(DATA, mix_prob=prob)
    plain = take(make_training_batches(dataset, DATA, TRAIN, BOTH), 30)
    mixed = take(make_training_batches(dataset, config, TRAIN, BOTH), 30)
    assert places(plain) == places(mixed)
    rows = {}
    for batch in plain:
        for i in range(6):
            row = {name: value[i] for name, value in batch.items()}
            rows[int(row["video_index"]), int(row["start_frame"])] = row
    partners, elsewhere = [], 0
    for batch, same in zip(mixed, plain):
        for i in range(6):
            first = {name: value[i] for name, value in same.items()}
            row = {name: value[i] for name, value in batch.items()}
            if (row["rgb"] == first["rgb"]).all():
                continue
            (partner,) = [place for place, other in rows.items()
                          if (mix_windows(first, other)["rgb"] == row["rgb"]).all()
                          and (mix_windows(first, other)["flow"] == row["flow"]).all()]
            assert_same([mix_windows(first, rows[partner])], [row])
            partners.append(partner)
            elsewhere += partner not in places([same])[0]
    # the short video's windows, and a window with itself, stay as they are
    assert {0.0: 0, 0.5: 50, 1.0: 110}[prob] <= len(partners) <= {0.0: 0, 0.5: 100, 1.0: 170}[prob]
    assert not prob or (len(set(partners)) == len(rows) - 1 and elsewhere > len(partners) / 4)
    test = [list(make_test_batches(dataset, data, 3, BOTH)) for data in (DATA, config)]
    assert_same(*test)


@pytest.mark.parametrize(("jitter", "mix"), [(0.0, 0.0), (0.3, 0.5)])
def test_order_depends_on_seed_alone(dataset, jitter, mix):
    """Threads that race, or a forgotten seed, would make runs irreproducible."""
    jittered = dataclasses.replace(DATA, speed_jitter=jitter, mix_prob=mix)
    expected = take(make_training_batches(dataset, jittered, TRAIN, BOTH), 9)
    for threads in (0, 4):
        config = dataclasses.replace(jittered, read_threads=threads)
        assert_same(expected, take(make_training_batches(dataset, config, TRAIN, BOTH), 9))
    other = make_training_batches(dataset, DATA, dataclasses.replace(TRAIN, seed=4), BOTH)
    assert places(take(other, 9)) != places(expected)


def test_worker_process(dataset):
    """With a worker process the same batches arrive, and a state of one kind serves the other."""
    expected = take(make_training_batches(dataset, DATA, TRAIN, ("rgb",)), 5)
    batches = make_training_batches(dataset, dataclasses.replace(DATA, workers=1), TRAIN, ("rgb",))
    batches.set_state({"step": 2})
    got = [{name: np.array(value) for name, value in next(batches).items()} for _ in range(3)]
    assert batches.get_state()["step"] == 5
    batches.close()
    assert_same(expected[2:], got)


def test_dead_worker_is_one_sentence(dataset):
    """A worker that is killed (out of memory): a wait without end, windows left out, or a traceback of Grain. Signals
    that the whole process group gets must not kill it: the training would die instead of saving."""
    batches = make_training_batches(dataset, dataclasses.replace(DATA, workers=1), TRAIN, ("rgb",))
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    time.sleep(0.2)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that reads training windows died.*data\.workers=1"):
        take(batches, 100)  # those that were read ahead still come
    batches.close()
    assert len(first["rgb"]) == 6


READ_FOR_EVER = """
import multiprocessing, sys, time
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.pipeline import make_training_batches
from tests.test_pipeline import DATA, TRAIN, dataclasses

batches = make_training_batches(open_dataset(sys.argv[1]), dataclasses.replace(DATA, workers=1), TRAIN, ("rgb",))
next(batches)
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_killed_training(dataset):
    """Processes that outlive a training which is killed, with its memory, deaf to signals and more with each start."""
    process = subprocess.Popen([sys.executable, "-c", READ_FOR_EVER, dataset.path], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    try:
        process.communicate(timeout=60)  # the worker holds the same standard output
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_record_stops(dataset, tmp_path, workers):
    """A record that fails its checksum: skipped in silence, read as noise, or a traceback of a worker process."""
    folder = tmp_path / "dataset"
    shutil.copytree(dataset.path, folder)
    (path,) = (folder / "records" / "1.0.0").glob("*training*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2:len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    data = dataclasses.replace(DATA, workers=workers)
    batches = make_training_batches(open_dataset(folder), data, TRAIN, ("rgb",))
    with pytest.raises(UserError, match=r"record \d+ of the subset 'training' cannot be read .*data_prep.check"):
        take(batches, 20)
    batches.close()


def test_state_resumes_the_very_sequence(dataset):
    """After a restart the rest must be the same batches, across an epoch's border, whatever was read ahead."""
    batches = make_training_batches(dataset, DATA, TRAIN, BOTH)
    total = batches.steps_per_epoch + 6
    everything = take(batches, total)
    for stop in (0, 3, batches.steps_per_epoch):
        first = make_training_batches(dataset, DATA, TRAIN, BOTH)
        take(first, stop)
        state = first.get_state()
        again = make_training_batches(dataset, DATA, TRAIN, BOTH)
        again.set_state(state)
        assert_same(everything[stop:], take(again, total - stop))
    batches.set_state({"step": 1})  # back in time, on an iterator in use
    assert_same(everything[1:3], take(batches, 2))


def test_state_of_other_readers_and_of_another_sequence(dataset):
    """Windows repeated or skipped in silence: with another number of processes or workers the batches stay the same and
    the user is told; with another batch size, seed or number of windows they do not, which is refused."""
    state = make_training_batches(dataset, DATA, TRAIN, BOTH).get_state() | {"step": 4}
    assert make_training_batches(dataset, DATA, TRAIN, BOTH).set_state(state) == ""
    assert make_training_batches(dataset, DATA, TRAIN, BOTH).set_state({"step": 4}) == ""  # as older versions saved it
    workers = dataclasses.replace(DATA, workers=2)
    other = make_training_batches(dataset, workers, TRAIN, BOTH, process_index=1, process_count=3)
    assert other.set_state(state) == (
        "the same batches are now read by others: processes 1 -> 3, data.workers 0 -> 2")
    for data, train, words in [(DATA, dataclasses.replace(TRAIN, batch_size=3), "train.batch_size = 6, here it is 3"),
                               (DATA, dataclasses.replace(TRAIN, seed=4), "train.seed = 3, here it is 4"),
                               (dataclasses.replace(DATA, stride_train=8), TRAIN, "windows = 16, here it is 10")]:
        batches = make_training_batches(dataset, data, train, BOTH)
        with pytest.raises(UserError, match=words):
            batches.set_state(state)
        assert batches.get_state()["step"] == 0


def test_processes_share_each_batch(dataset):
    """Two hosts together must see the batch that one would see: else results depend on the number of hosts."""
    data = dataclasses.replace(DATA, speed_jitter=0.3, mix_prob=0.5)
    whole = take(make_training_batches(dataset, data, TRAIN, ("rgb",)), 8)
    parts = [take(make_training_batches(dataset, data, TRAIN, ("rgb",), process_index=i, process_count=2), 8)
             for i in range(2)]
    for batch, left, right in zip(whole, *parts):  # in place: random crops and flips are drawn by place
        assert_same([{name: np.concatenate([left[name], right[name]]) for name in batch}], [batch])
    with pytest.raises(UserError, match=r"batch_size \(6\).*processes \(4\)"):
        make_training_batches(dataset, DATA, TRAIN, ("rgb",), process_index=0, process_count=4)


def test_test_batches(dataset):
    """Every test window once and in order, the rest of the last batch marked; also when two hosts share the work."""
    expected = [(3, start) for start in (0, 16, 32, 38)]
    batches = make_test_batches(dataset, DATA, 3, ("flow",))
    assert len(batches) == 2 and batches.num_windows == 4
    for _ in range(2):  # may be gone through again
        got = list(batches)
        assert [b["is_real"].tolist() for b in got] == [[True] * 3, [True, False, False]]
        assert set(got[0]) == {"flow", "num_frames", "video_index", "start_frame", "is_real"}
        assert [p for batch in places(got) for p in batch] == [*expected, expected[-1], expected[-1]]
    shares = [list(make_test_batches(dataset, DATA, 6, ("rgb",), process_index=i, process_count=2)) for i in range(2)]
    real = [p for share in shares for b in share for p, r in zip(places([b])[0], b["is_real"]) if r]
    assert len(shares[0]) == len(shares[1]) and sorted(real) == expected
    training = make_test_batches(dataset, DATA, 4, ("rgb",), subset="training")
    assert {video for batch in places(training) for video, _ in batch} == {0, 1, 2}


def test_small_dataset_and_large_batch(dataset):
    """Fewer windows than a batch must give full batches for ever, not an endless wait for none."""
    config = dataclasses.replace(DATA, stride_train=1000)
    batches = make_training_batches(dataset, config, dataclasses.replace(TRAIN, batch_size=16), ("rgb",))
    assert batches.num_windows < 16 and batches.steps_per_epoch == 1
    assert len(next(batches)["rgb"]) == 16


def test_shuffle_labels(dataset):
    """The control experiment must move labels and nothing else."""
    config = dataclasses.replace(DATA, window_rule="all")
    plain = take(make_training_batches(dataset, config, TRAIN, ("rgb",)), 10)
    moved = take(make_training_batches(dataset, dataclasses.replace(config, shuffle_labels=True), TRAIN, ("rgb",)), 10)
    for name in ("rgb", "segments_norm", "valid", "start_frame"):
        assert_same([{name: b[name]} for b in plain], [{name: b[name]} for b in moved])
    assert any((a["labels"] != b["labels"]).any() for a, b in zip(plain, moved))


def test_refusals(dataset):
    """What cannot work is told before the first batch."""
    for config, words in [(dataclasses.replace(DATA, train_subset="none"), "no videos of the subset 'none'"),
                          (dataclasses.replace(DATA, crop_size=64), "crop_size"),
                          (dataclasses.replace(DATA, min_tioa=1.0), "no window"),
                          (dataclasses.replace(DATA, max_targets=1), "max_targets")]:
        with pytest.raises(UserError, match=words):
            make_training_batches(dataset, config, TRAIN, BOTH)
