"""Detection in a video file: the windows that the network sees, and the same detections as in evaluation."""

import dataclasses
import json
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax import config as config_lib
from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.optical_flow import compute_flow
from sptad_jax.data.video import decode_video, write_video
from sptad_jax.data.windows import make_window_starts
from sptad_jax.errors import UserError
from sptad_jax.inference.detect import Detector, batch_windows, cut_windows, detect_video, load_detector, select
from sptad_jax.inference.predict import evaluate_state
from sptad_jax.training.checkpoints import Checkpoints
from tests.reference.detector_run import make_run
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.reference.tiny_training import CONFIG, change, new_state, quick_compilation
from tests.reference.whole_video import cut, detect_whole

SOURCE = {"fps": 10.0, "frame_size": 24, "max_frames": 0, "flow": {"method": "dis", "bound": 5.0, "size": 24}}
DATA = DataConfig(num_frames=16, crop_size=16, stride_test=12, train_subset="training", test_subset="testing")


class Network:
    """Stands in for the forward pass: remembers its batches; its answer depends on every pixel of a window."""

    def __init__(self):
        self.batches = []

    def __call__(self, variables, batch):
        self.batches.append(batch)
        real = np.arange(16) < batch["num_frames"][:, None]
        share = np.stack([(batch[name].mean((2, 3, 4)) * real).sum(1) / 255 / 16 for name in ("rgb", "flow")], -1)
        start = share[:, :1] / 2
        return {"class_prob": share[:, None], "segments_norm": np.stack([start, start + 0.3], -1)}


def make_detector(network, streams=("rgb", "flow"), batch_size=3, source=SOURCE):
    config = Config(model=ModelConfig(streams=streams), data=DATA,
                    inference=InferenceConfig(batch_size=batch_size, nms="none", min_score=0.0))  # fmt: skip
    return Detector(network, {}, config, ("jump", "run"), source)


def write(path, count):
    """`count` frames of noise at 10 fps."""
    frames = np.random.default_rng(count).integers(0, 256, (count, 24, 24, 3), np.uint8)
    write_video(path, frames, 10, crf=10)
    return path


@pytest.mark.parametrize("count, starts", [(9, [0]), (16, [0]), (17, [0, 1]), (40, [0, 12, 24]), (45, [0, 12, 24, 29])])
def test_windows(tmp_path, count, starts):
    """A window that is shifted, a tail left out, padding that is not zero or counts as real, batches of another size
    (each compiles the network again), a repeated window that counts twice."""
    path, network = write(tmp_path / "a.mp4", count), Network()
    detections, duration_sec = detect_video(make_detector(network), path)
    assert duration_sec == pytest.approx(count / 10)
    frames = {"rgb": decode_video(path, 10.0, 24).frames}
    frames["flow"] = compute_flow(frames["rgb"], "dis", 5.0)
    assert len(network.batches) == -(-len(starts) // 3)
    seen = []
    for batch in network.batches:
        assert batch["rgb"].shape == (3, 16, 24, 24, 3) and batch["flow"].shape == (3, 16, 24, 24, 2)
        for row in range(3):
            start = int(batch["start_frame"][row])
            if batch["is_real"][row]:
                seen.append(start)
            assert batch["num_frames"][row] == min(count - start, 16)
            for name in ("rgb", "flow"):
                for t in range(16):
                    expected = frames[name][start + t] if start + t < count else 0
                    assert (batch[name][row, t] == expected).all(), (name, start, t)
    assert seen == starts and len(detections) == 2 * len(starts)


@pytest.mark.parametrize("flow", [None, SOURCE["flow"] | {"size": 32}], ids=["without flow", "with flow"])
def test_streams_that_the_model_does_not_take(tmp_path, monkeypatch, flow):
    """Flow computed for nothing (the slowest part by far), or a dataset without flow that cannot be used; pictures
    that are scaled otherwise because there is no flow."""
    network, source = Network(), SOURCE | {"flow": flow}
    path = write(tmp_path / "a.mp4", 16)
    if flow:
        both = Network()
        detect_video(make_detector(both, source=source), path)

    def fail(*args, **kwargs):
        raise AssertionError("computed flow")

    monkeypatch.setattr("sptad_jax.data.streams.compute_flow", fail)

    def forward(variables, batch):
        network.batches.append(batch)
        return {"class_prob": np.full((3, 1, 2), 0.5), "segments_norm": np.tile([0.25, 0.5], (3, 1, 1))}

    detector = make_detector(forward, streams=("rgb",), source=source)
    detections, _ = detect_video(detector, path)
    assert "flow" not in network.batches[0]
    if flow:
        np.testing.assert_array_equal(network.batches[0]["rgb"], both.batches[0]["rgb"])
    assert detections == [{"label": name, "score": 0.5, "segment": [0.4, 0.8]} for name in ("jump", "run")]


def test_same_detections_as_in_evaluation(tmp_path):
    """Decoding, flow, windows, padding or post-processing that differ between evaluation and a single file."""
    dataset = open_dataset(make_tiny_dataset(tmp_path))
    detector = make_detector(Network(), source=dataset.source, batch_size=2)
    evaluate_state({}, dataset, detector.config, tmp_path, Network())
    found, _ = detect_video(detector, tmp_path / "videos" / "unseen.mp4")
    expected = json.loads((tmp_path / "detections.json").read_text())["results"]["unseen"]
    assert len(expected) == 12 and found == expected


def test_broken_video_is_one_sentence(tmp_path):
    """A traceback of FFmpeg."""
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    for name in ("a.mp4", "absent.mp4"):
        with pytest.raises(UserError, match=name):
            detect_video(make_detector(Network()), tmp_path / name)


def test_loaded_detector_is_the_trained_one(tmp_path):
    """Options, classes or frame settings that are lost between training and detection; raw for averaged parameters."""
    state = new_state(CONFIG)
    state = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))
    data = dataclasses.replace(CONFIG.data, stride_test=7)
    config = dataclasses.replace(CONFIG, data=data)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(state, {}, {"config": config_lib.to_dict(config), "classes": ["run", "jump"], "source": SOURCE})
    checkpoints.close()
    detector = load_detector(tmp_path)
    assert detector.config == config and detector.classes == ("run", "jump") and detector.source == SOURCE
    expected = {"params": state.ema_params, "batch_stats": state.batch_stats}
    assert jax.tree.structure(detector.variables) == jax.tree.structure(expected)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(detector.variables)))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), length=st.integers(1, 12), stride=st.integers(1, 20),
       batch=st.integers(1, 4))
@settings(deadline=None, max_examples=300)
def test_windows_cut_from_a_stream_are_those_of_the_whole(sizes, length, stride, batch):
    """Any blocks, windows shorter or longer than the video, strides beyond a window: catches a frame dropped too
    early, a doubled or missing last window, padding that is not 0, an unequal or wrongly filled batch."""
    frames = np.arange(1, sum(sizes) + 1)[:, None] * np.array([1, 1000])
    blocks = ({"rgb": part, "flow": -part} for part in np.split(frames, np.cumsum(sizes)[:-1]))
    batches = list(batch_windows(cut_windows(blocks, length, stride), batch))
    starts = make_window_starts(len(frames), length, stride)
    assert len(batches) == -(-len(starts) // batch)
    for k, out in enumerate(batches):
        own = starts[k * batch:(k + 1) * batch]
        assert out["is_real"].tolist() == [row < len(own) for row in range(batch)]
        for row in range(batch):
            start = own[row % len(own)]
            assert out["start_frame"][row] == start and out["num_frames"][row] == min(len(frames) - start, length)
            np.testing.assert_array_equal(out["rgb"][row], cut(frames, start, length))
            np.testing.assert_array_equal(out["flow"][row], -cut(frames, start, length))


def test_memory_does_not_grow_with_the_video():
    """Blocks or windows that are kept: the peak of 20,000 frames is that of 1,000, 80 frames more at most."""
    def peak(count):
        blocks = ({"rgb": np.ones((50, 24, 24, 3), np.uint8)} for _ in range(count // 50))
        tracemalloc.start()
        for _ in batch_windows(cut_windows(blocks, 128, 64), 4):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(20_000) < peak(1_000) + 80 * 24 * 24 * 3


def test_streaming_equals_the_whole_video(tmp_path, shared):
    """Real files through the tiny network, all bits: windows in another order or batch, another rate or duration."""
    detector = load_detector(make_run(tmp_path))
    with quick_compilation():
        for name in ("videos/gmdcsa24/subject_1/Fall/14.mp4", "videos/v_GGSY1Qvo990.mp4",
                     "motion16/videos/vid_0001.mp4"):
            found, duration_sec = detect_video(detector, shared / name)
            assert len(found) > 30 and (found, duration_sec) == detect_whole(detector, shared / name), name


def test_an_option_that_a_newer_version_refuses(tmp_path):
    """A checkpoint with windows that leave frames out, from before there was a rule: changed in time, it is of use."""
    stored = config_lib.to_dict(change(CONFIG, data={"stride_test": 32}))
    run = make_run(tmp_path, config=stored)
    with pytest.raises(UserError, match=r"data.stride_test \(32\) must be at most data.num_frames \(16\)"):
        load_detector(run)
    assert load_detector(run, overrides=["data.stride_test=8"]).config.data.stride_test == 8


@pytest.mark.parametrize("count, max_frames", [(9, 0), (64, 0), (66, 0), (150, 0), (150, 90)])
def test_streaming_equals_the_whole_video_with_flow(tmp_path, count, max_frames):
    """Flow lost or doubled where blocks meet; ActivityNet's fixed number of frames, whose rate is known at the end."""
    path = write(tmp_path / "a.mp4", count)
    detector = make_detector(Network(), source=SOURCE | {"max_frames": max_frames})
    seconds = []
    found = detect_video(detector, path, seconds.append)
    assert found == detect_whole(detector, path) and found[0]
    assert seconds == sorted(seconds) and seconds[-1] >= found[1] - 0.2, "progress stops before the end"


def test_choice_of_detections():
    """Filters in the wrong order (the best of all classes, then the class), a limit that a just equal score misses."""
    rows = [{"label": name, "score": score, "segment": [0.0, 1.0]}
            for name, score in (("a", 0.9), ("b", 0.8), ("b", 0.5), ("a", 0.5), ("b", 0.4))]  # fmt: skip
    assert select(rows) == rows
    assert select(rows, 0.5) == rows[:4]
    assert select(rows, 0.5, ["b"], 1) == [rows[1]] and select(rows, 0.85, ["b"], 1) == []
    assert select(rows, top_k=2) == rows[:2]
    with pytest.raises(UserError, match=r"unknown class c; the detector knows: jump, run"):
        make_detector(Network()).detect("a.mp4", classes=["jump", "c"])
