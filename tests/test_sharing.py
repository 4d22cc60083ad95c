"""Backbones shared between overlapping windows: which windows are joined from which, and what it changes."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.windows import make_window_starts
from sptad_jax.errors import UserError
from sptad_jax.inference.detect import Detector, batch_windows, cut_windows, detect_video
from sptad_jax.inference.predict import evaluate_state, make_forward
from sptad_jax.inference.sharing import SharedForward, join, run_batches
from sptad_jax.models import sptad
from tests.reference.parameters import draw_variables
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.reference.tiny_training import CONFIG, change, quick_compilation
from tests.test_sptad import PooledFrames

TINY = Config(
    model=ModelConfig(width_multiplier=0.0625, hidden_dim=16, num_heads=2, dynamic_dim=4, ffn_dim=16, soi_bins=2,
                      num_proposals=3, num_stages=1),
    data=DataConfig(num_frames=32, crop_size=32, stride_test=16, max_targets=2),
    inference=InferenceConfig(batch_size=3, share_backbone=True))  # fmt: skip


def batches_of(counts, length, stride, size, frame_of=lambda video, t: np.array([1000.0 * video + t])):
    """Test batches of videos of so many frames, as the pipeline and `sptad detect` make them."""
    rows = []
    for video, count in enumerate(counts):
        frames = np.stack([frame_of(video, t) for t in range(count)])
        rows += [(video, *window) for window in cut_windows([{"rgb": frames}], length, stride)]
    for batch in batch_windows([row[1:] for row in rows], size):
        videos, rows = [row[0] for row in rows[:size]], rows[size:]
        yield batch | {"video_index": np.resize(videos, size).astype(np.int32)}


class Frames:
    """Stands in for backbones without context, and heads that answer with their features: sums of 8 frames."""

    def __init__(self):
        self.passes = []

    def extract(self, variables, batch):
        self.passes += [int(window[0, 0]) for window in batch["rgb"]]
        return batch["rgb"].reshape(len(batch["rgb"]), -1, 8).sum(-1)

    def finish(self, variables, old, new, rows):
        bank = np.concatenate([old, new])
        both = np.concatenate([bank[rows["first"]], bank[rows["second"]]], axis=1)
        steps = old.shape[1]
        return {"found": np.stack([x[s // 8:s // 8 + steps] for x, s in zip(both, rows["shift"])])}


@given(counts=st.lists(st.integers(1, 150), min_size=1, max_size=5), stride=st.sampled_from([8, 16, 32]),
       size=st.integers(1, 5))
@settings(deadline=None, max_examples=200)
def test_every_window_gets_its_own_features_and_every_frame_one_pass(counts, stride, size):
    """Features of another window, video or batch; a window joined across two videos; lost, doubled or reordered
    windows; padding that counts; a frame that goes through the backbone twice although a pass on each side has it."""
    network = Frames()
    forward = SharedForward(network.extract, network.finish, 32)
    given_batches = list(batches_of(counts, 32, stride, size))
    answers = list(forward.run(None, given_batches))
    assert len(answers) == len(given_batches)
    for name in ("video_index", "start_frame", "num_frames"):
        real = [np.concatenate([batch[name][batch["is_real"]] for batch in side])
                for side in (given_batches, [places for _, places in answers])]  # fmt: skip
        np.testing.assert_array_equal(*real)
    for out, places in answers:
        for row in np.flatnonzero(places["is_real"]):
            video, start = places["video_index"][row], places["start_frame"][row]
            frames = 1000 * video + np.arange(start, start + 32)
            frames[start + np.arange(32) >= counts[video]] = 0
            np.testing.assert_array_equal(out["found"][row], frames.reshape(4, 8).sum(-1))
    expected = []
    for video, count in enumerate(counts):
        last = max(count - 32, 0) // 32 * 32  # where the last pass begins; windows beyond have no pass after them
        expected += [1000 * video + s for s in make_window_starts(count, 32, stride) if s % 32 == 0 or s > last]
    assert list(dict.fromkeys(network.passes)) == expected
    assert len(network.passes) == -(-len(expected) // size) * size  # the last batch is filled up, no other


def windows_at(*rows):
    """A batch of (video, start) windows of 32 frames."""
    video, start = (np.array(column, np.int32) for column in zip(*rows))
    return {"rgb": 1000.0 * video[:, None, None] + start[:, None, None] + np.arange(32)[:, None],
            "is_real": np.ones(len(rows), bool), "num_frames": np.full(len(rows), 32, np.int32),
            "start_frame": start, "video_index": video}  # fmt: skip


def test_windows_of_several_processes_are_exact():
    """Windows, which alternate between processes, that are joined from passes of two videos or far from each other."""
    network = Frames()
    batch = windows_at((0, 0), (0, 48), (0, 64), (1, 80), (1, 96), (1, 112), (2, 128))
    list(SharedForward(network.extract, network.finish, 32).run(None, [batch]))
    assert network.passes == [0, 48, 64, 1080, 1096, 1112, 2128]


def test_windows_do_not_pile_up():
    """Windows that wait for a pass which cannot come: another process has all windows at multiples of F."""
    network, read = Frames(), []

    def batches():
        for video in range(50):
            read.append(video)
            yield windows_at(*[(video, start) for start in ((0, 16) if video == 0 else (16, 48))])

    answers = SharedForward(network.extract, network.finish, 32).run(None, batches())
    for count, _ in enumerate(answers, start=1):
        assert len(read) <= count + 1


def test_memory_does_not_grow_with_the_video():
    """Frames of windows or features of passes that are kept: the peak of 20,000 frames is that of 3,000, a
    batch more at most, since it depends on how the last passes fall into batches."""
    def peak(count):
        blocks = ({"rgb": np.ones((50, 24, 24, 3), np.uint8)} for _ in range(count // 50))
        forward = SharedForward(lambda _, batch: np.zeros((4, 16)), lambda *_: {}, 128)
        tracemalloc.start()
        for _ in forward.run(None, batch_windows(cut_windows(blocks, 128, 64), 4)):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(20_000) < peak(3_000) + 4 * 128 * 24 * 24 * 3


def test_join():
    """Steps counted in frames, or cut from the wrong side."""
    first, second = np.arange(8).reshape(2, 4), 10 + np.arange(8).reshape(2, 4)
    found = join(first, second, np.array([0, 24]), 32)
    assert found.tolist() == [[0, 1, 2, 3], [7, 14, 15, 16]]


def both_ways(config, variables, batches, num_classes=2):
    """Predictions of all windows, exact and shared, with start_frame."""
    exact = change(config, inference={"share_backbone": False})
    answers = []
    with quick_compilation():
        for side in (exact, config):
            pairs = [out | places for out, places in run_batches(make_forward(side, num_classes), variables, batches)]
            answers.append({name: np.concatenate([np.asarray(pair[name])[pair["is_real"]] for pair in pairs])
                            for name in ("class_prob", "segments_norm", "clip_prob", "start_frame")})
    return answers


def noise_batches(config, counts):
    """Windows of both streams; frames differ in brightness, so that means over space and time tell them apart."""
    rng = np.random.default_rng(0)
    crop, data = config.data.crop_size, config.data
    for batch in batches_of(counts, data.num_frames, data.stride_test, config.inference.batch_size,
                            lambda video, t: (rng.integers(0, 200, 5, np.uint8)
                                              + rng.integers(0, 56, (crop, crop, 5), np.uint8))):  # fmt: skip
        streams = {"rgb": batch["rgb"][..., :3], "flow": batch["rgb"][..., 3:]}
        yield batch | {name: streams[name] for name in config.model.streams}


@pytest.mark.parametrize("options", [{}, {"fusion": "late"}, {"fpn_spatial": "conv"}], ids=["early", "late", "conv"])
def test_without_temporal_context_nothing_changes(monkeypatch, options):
    """Streams or levels swapped between the two parts, padded frames that count, a mean that is not the one of the
    pyramid and the clip head: with a backbone whose steps see their own frames alone, sharing is exact."""
    monkeypatch.setattr(sptad, "I3D", PooledFrames)
    config = change(TINY, model=options)
    batches = list(noise_batches(config, [90, 20, 64]))
    inputs = {name: np.zeros((1, 32, 32, 32, c), np.float32) for name, c in (("rgb", 3), ("flow", 2))}
    variables = draw_variables(sptad.SPTAD(config.model, 2), inputs, None, train=False)
    exact, shared = both_ways(config, variables, batches)
    assert len(exact["start_frame"]) == 5 + 1 + 3
    for name in exact:
        np.testing.assert_allclose(shared[name], exact[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_windows_with_a_pass_of_their_own_are_exact():
    """A real backbone: passes, the last odd window and short videos that are approximated; or windows between two
    passes that are not shared at all."""
    config = change(CONFIG, data={"stride_test": 8}, inference={"share_backbone": True, "batch_size": 3})
    batches = list(noise_batches(config, [43, 9]))  # 0 8 16 24 27, and a short one
    inputs = {"rgb": np.zeros((1, 16, 16, 16, 3), np.float32)}
    variables = draw_variables(sptad.SPTAD(config.model, 2), inputs, None, train=False)
    exact, shared = both_ways(config, variables, batches)
    assert exact["start_frame"].tolist() == [0, 8, 16, 24, 27, 0]
    error = np.abs(shared["class_prob"] - exact["class_prob"]).max(axis=(1, 2))
    assert (error < 1e-6).tolist() == [True, False, True, True, True, True]


def test_features_beyond_the_receptive_field_are_exact():
    """A receptive field that is not the documented one, or a step that is cut from the wrong place.

    A step i of Mixed_3c, 4f, 5c sees frames 2i-8..2i+10, 4i-28..4i+34, 8i-44..8i+54, by adding up kernels and SAME
    padding: 19, 63 and 99. The window from 128 to 384 is joined from 0..256 and 256..512.
    """
    config = change(TINY, model={"streams": ("rgb",)}, data={"num_frames": 256, "crop_size": 16, "stride_test": 128})
    model = sptad.SPTAD(config.model, 2)
    variables = draw_variables(model, {"rgb": np.zeros((1, 256, 16, 16, 3), np.float32)}, None, train=False)
    frames = np.random.default_rng(0).integers(0, 256, (512, 16, 16, 3), np.uint8)
    windows = {"rgb": np.stack([frames[s:s + 256] for s in (0, 256, 128)]), "num_frames": np.full(3, 256, np.int32)}
    with quick_compilation():
        features = make_forward(config, 2).extract(variables, windows)["rgb"]
    for x, stride, before, after in zip(features, (2, 4, 8), (8, 28, 44), (10, 34, 54), strict=True):
        joined = np.asarray(join(x[:1], x[1:2], np.array([128]), 256))[0]
        error = np.abs(joined - np.asarray(x)[2]).max(axis=(1, 2, 3)) / np.abs(x[2]).max()
        first, last = stride * np.arange(len(error)) - before, stride * np.arange(len(error)) + after
        inside = ((first >= 0) & (last < 128)) | ((first >= 128) & (last < 256))
        assert inside.sum() >= 6 and error[inside].max() < 1e-5
        assert (error[~inside] > 1e-5).mean() > 0.6


def test_same_detections_in_evaluation_and_in_a_file(tmp_path):
    """One of the two that ignores the option, or joins other windows."""
    dataset = open_dataset(make_tiny_dataset(tmp_path))
    config = change(CONFIG, data={"stride_test": 8, "train_subset": "training", "test_subset": "testing"},
                    inference={"share_backbone": True, "batch_size": 2, "nms": "none", "min_score": 0.0})
    inputs = {"rgb": np.zeros((1, 16, 16, 16, 3), np.float32)}
    variables = draw_variables(sptad.SPTAD(config.model, 2), inputs, None, train=False)
    found = {}
    for share in (True, False):
        side = change(config, inference={"share_backbone": share})
        with quick_compilation():
            forward = make_forward(side, 2)
            evaluate_state(variables, dataset, side, tmp_path, forward)
            detector = Detector(forward, variables, side, dataset.classes, dataset.source)
            found[share], _ = detect_video(detector, tmp_path / "videos" / "unseen.mp4")
        assert found[share] == json.loads((tmp_path / "detections.json").read_text())["results"]["unseen"]
    assert len(found[True]) == len(found[False]) and found[True] != found[False]


def test_one_batch_by_itself_is_exact():
    """A shared detector that, called on single windows, needs their neighbours."""
    network = Frames()
    batch = next(batches_of([80], 32, 16, 3))
    out = SharedForward(network.extract, network.finish, 32)(None, batch)
    np.testing.assert_array_equal(out["found"], batch["rgb"].reshape(3, 4, 8).sum(-1))


def test_no_sharing_in_a_mirror():
    """A mirror that is left out without a word: proposals of one look would be taken for those of two."""
    config = dataclasses.replace(TINY, inference=InferenceConfig(share_backbone=True, mirror=True))
    with pytest.raises(UserError, match="looks at no mirror"):
        make_forward(config, 2)


@pytest.mark.parametrize("length, stride", [(64, 24), (48, 12)])
def test_strides_that_do_not_fit_are_refused(length, stride):
    """Windows cut between two steps, or nothing shared without a word."""
    config = dataclasses.replace(TINY, data=DataConfig(num_frames=length, stride_test=stride))
    with pytest.raises(UserError, match=r"data.stride_test \(\d+\) must divide data.num_frames"):
        make_forward(config, 2)
