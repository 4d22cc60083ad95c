"""From windows to detections of videos and mAP: grouping, seconds, and the forward pass against plain steps."""

import dataclasses
import json

import numpy as np
import pytest

from sptad_jax.config import Config, DataConfig, InferenceConfig
from sptad_jax.data.datasets import open_dataset
from sptad_jax.errors import UserError
from sptad_jax.inference.postprocess import windows_to_detections
from sptad_jax.inference.predict import check_test_videos, evaluate_state, make_forward, predict_windows
from sptad_jax.models.sptad import SPTAD
from tests.reference.parameters import draw_variables, run_once
from tests.reference.tiny_dataset import make_tiny_dataset
from tests.reference.tiny_training import CONFIG, NUM_CLASSES, change, quick_compilation

NO_NMS = InferenceConfig(nms="none", min_score=0.0)
# Two streams, and options that behave otherwise in training.
LATE = change(CONFIG, model={"streams": ("rgb", "flow"), "fusion": "late", "dropout": 0.5, "bn_mode": "train"},
              data={"flip_prob": 1.0})  # fmt: skip


def batch_of(*rows):
    """A test batch of (video, start, is_real) rows."""
    video, start, real = (np.array(column) for column in zip(*rows))
    return {"video_index": video.astype(np.int32), "start_frame": start.astype(np.int32), "is_real": real.astype(bool)}


def fake_forward(variables, batch):
    """Numbers that tell which window they are of."""
    code = batch["video_index"] * 1000.0 + batch["start_frame"]
    return {"class_prob": np.tile(code[:, None, None], (1, 2, 3)), "clip_prob": np.tile(-code[:, None], (1, 3))}


def test_windows_are_grouped_by_video():
    """Windows of another video in a group, the repeated windows of the last batch, a lost or reordered window."""
    batches = [batch_of((4, 0, 1), (4, 16, 1), (4, 20, 1)), batch_of((7, 0, 1), (4, 40, 1), (7, 8, 1)),
               batch_of((9, 0, 1), (9, 0, 0), (9, 0, 0))]  # fmt: skip
    found = predict_windows(fake_forward, None, batches, 7)
    assert {index: windows["start_frame"].tolist() for index, windows in found.items()} == {
        4: [0, 16, 20, 40], 7: [0, 8], 9: [0]}  # fmt: skip
    for index, windows in found.items():
        assert windows["class_prob"].shape == (len(windows["start_frame"]), 2, 3)
        for row, start in enumerate(windows["start_frame"]):
            assert (windows["class_prob"][row] == index * 1000 + start).all()
            assert (windows["clip_prob"][row] == -(index * 1000 + start)).all()


def slow_detections(windows, fps, num_frames, duration_sec, classes):
    """One proposal after the other, in seconds."""
    found = []
    for row, start_frame in enumerate(windows["start_frame"]):
        for proposal, (start, end) in enumerate(windows["segments_norm"][row]):
            times = [(start_frame + min(max(share, 0), 1) * num_frames) / fps for share in (start, end)]
            times = [min(time, duration_sec) for time in times]
            for a, label in enumerate(classes):
                if times[1] > times[0]:
                    score = windows["class_prob"][row, proposal, a] * windows["clip_prob"][row, a]
                    found.append((label, float(score), *times))
    return sorted(found, key=lambda row: -row[1])


def make_windows(seed=0, num_windows=3):
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-0.2, 0.9, (num_windows, 4))
    return {
        "class_prob": rng.random((num_windows, 4, 2)), "clip_prob": rng.random((num_windows, 2)),
        "segments_norm": np.stack([starts, starts + rng.uniform(0.05, 0.6, starts.shape)], -1),
        "start_frame": np.arange(num_windows, dtype=np.int32) * 48}  # fmt: skip


@pytest.mark.parametrize("fps", [10.0, 12.5])
def test_seconds(fps):
    """Frames taken for seconds, a window's length without the frame rate, an end beyond the video."""
    config = Config(data=DataConfig(num_frames=64), inference=NO_NMS)
    windows = make_windows()
    found = windows_to_detections(windows, duration_sec=14.5, fps=fps, config=config, classes=("a", "b"))
    expected = slow_detections(windows, fps, 64, 14.5, ("a", "b"))
    assert [row["label"] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose([(row["score"], *row["segment"]) for row in found], [row[1:] for row in expected],
                               atol=6e-5)  # times are rounded to 0.1 ms  # fmt: skip


def test_external_scores_and_missing_clip_head():
    """Scores of another classifier that are not multiplied in; a detector without classification head that fails."""
    config = Config(data=DataConfig(num_frames=64), inference=NO_NMS)
    windows = make_windows(num_windows=1)
    del windows["clip_prob"]
    found = windows_to_detections(windows, duration_sec=99.0, fps=10.0, config=config, classes=("a", "b"),
                                  external={"b": 0.5})  # fmt: skip
    by_score = sorted((windows["class_prob"][0, :, 1] * 0.5).tolist(), reverse=True)
    assert [row["score"] for row in found if row["label"] == "b"] == pytest.approx(by_score)


def test_a_mirrored_window_votes_for_itself():
    """One window, seen twice: the plain proposal has 0.8, the mirror's of the same segment 0.2; the mean vote is 0.5.
    Taken for one window of two proposals, nothing would change; cut across, windows' clip probabilities get mixed."""
    config = Config(inference=dataclasses.replace(NO_NMS, vote=True, mirror=True, combine="product"))
    windows = {"class_prob": np.array([[[0.8], [0.2]], [[0.6], [0.6]]]), "clip_prob": np.array([[1.0], [0.5]]),
               "segments_norm": np.full((2, 2, 2), [0.25, 0.5]), "start_frame": np.array([0, 512])}  # fmt: skip
    found = windows_to_detections(windows, duration_sec=99.0, fps=10.0, config=config, classes=("a",))
    assert [row["score"] for row in found] == pytest.approx([0.4**0.5, 0.1**0.5, 0.3, 0.3])
    assert [row["segment"][0] for row in found] == pytest.approx([6.4, 6.4, 57.6, 57.6])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(make_tiny_dataset(tmp_path_factory.mktemp("tiny")))


def test_evaluation_of_a_dataset(dataset, tmp_path):
    """The whole way with a forward pass that knows one segment: seconds through windows, files and mAP by hand.

    'unseen' has 70 frames at 10 fps; windows of 32 frames start at 0, 16, 32 and 38. Its one instance is "run" from
    2 s to 4 s. The fake finds 2.0..4.0 in the window from 16 with the best score and nonsense elsewhere.
    """
    data = DataConfig(num_frames=32, crop_size=32, stride_test=16, train_subset="training", test_subset="testing")
    config = Config(data=data, inference=dataclasses.replace(NO_NMS, batch_size=3))
    seen = []

    def forward(variables, batch):
        assert variables == "variables" and batch["rgb"].shape == (3, 32, 36, 36, 3)
        seen.extend(batch["start_frame"][batch["is_real"]].tolist())
        right = batch["start_frame"] == 16
        start = np.where(right, (20 - 16) / 32, 0.9)
        end = np.where(right, (40 - 16) / 32, 1.0)
        prob = np.where(right, 0.75, 0.125)[:, None, None] * np.array([0.25, 1.0])  # jump, run
        return {"class_prob": prob, "segments_norm": np.stack([start, end], -1)[:, None]}

    results = evaluate_state("variables", dataset, config, tmp_path, forward)
    assert seen == [0, 16, 32, 38]
    assert results["map"] == {"0.3": 1.0, "0.4": 1.0, "0.5": 1.0, "0.6": 1.0, "0.7": 1.0}
    assert results == json.loads((tmp_path / "results.json").read_text())
    found = json.loads((tmp_path / "detections.json").read_text())["results"]
    assert found.keys() == {"unseen"} and len(found["unseen"]) == 8
    assert found["unseen"][0] == {"label": "run", "score": 0.75, "segment": [2.0, 4.0]}
    late = [row["segment"] for row in found["unseen"] if row["label"] == "run"][1:]
    assert sorted(late) == [[2.88, 3.2], [6.08, 6.4], [6.68, 7.0]]


def test_what_keeps_an_evaluation_from_ending_is_told_before(dataset, tmp_path):
    """Days of training that end without a score: a test subset without annotations, scores of other classes."""
    config = Config(data=DataConfig(test_subset="testing"), inference=NO_NMS)
    assert check_test_videos(dataset, config) == {}
    path = tmp_path / "scores.json"
    scored = dataclasses.replace(config, inference=dataclasses.replace(NO_NMS, external_scores=str(path)))
    path.write_text('{"v_unseen": {"run": 0.5}}')
    assert check_test_videos(dataset, scored) == {"unseen": {"run": 0.5}}
    path.write_text('{"v_unseen": {"sit": 0.5}}')
    with pytest.raises(UserError, match="no label of the file is a class"):
        check_test_videos(dataset, scored)
    bare = [dataclasses.replace(video, annotations=[]) for video in dataset.videos]
    with pytest.raises(UserError, match="'testing' has no annotation"):
        check_test_videos(dataclasses.replace(dataset, videos=bare), config)


def test_forward_pass():
    """Training behaviour at test time (random crop, dropout, batch statistics), logits for probabilities, the first
    stage or stream in the place of the last ones, padded frames that count. Against NumPy's crop and sigmoid."""
    module = SPTAD(LATE.model, NUM_CLASSES)
    rng = np.random.default_rng(0)
    batch = {"rgb": rng.integers(0, 256, (2, 16, 21, 21, 3), np.uint8),
             "flow": rng.integers(0, 256, (2, 16, 21, 21, 2), np.uint8), "num_frames": np.array([16, 9], np.int32),
             "start_frame": np.zeros(2, np.int32)}  # fmt: skip
    inputs = {}
    for name in ("rgb", "flow"):
        inputs[name] = (batch[name][:, :, 2:18, 2:18] / 255 * 2 - 1).astype(np.float32)
        inputs[name][1, 9:] = 0
    mask = np.arange(16) < batch["num_frames"][:, None]
    variables = draw_variables(module, inputs, mask, train=False)
    predictions, _ = run_once(lambda v: module.apply(v, inputs, mask, train=False), variables)
    with quick_compilation():
        found = make_forward(LATE, NUM_CLASSES)(variables, batch)

    def sigmoid(x):
        return 1 / (1 + np.exp(-np.asarray(x, np.float64)))

    logits, segments = np.asarray(predictions["class_logits"]), np.asarray(predictions["segments_se"])
    assert logits.shape == (2, 2, 3, 2)  # one stage, two streams
    expected = {"class_prob": np.concatenate(sigmoid(logits), axis=1),
                "segments_norm": np.concatenate(segments, axis=1),
                "clip_prob": sigmoid(predictions["clip_logits"])}  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pad_value", ["zero", "minus_one"])
def test_mirrored_windows(pad_value):
    """A mirror in the place of the other, one that turns padding or leaves the flow's direction, proposals in another
    order than their segments. Against the pass over frames that NumPy has mirrored as bytes."""
    config = change(LATE, data={"flip_negates_flow_x": True, "pad_value": pad_value, "flip_prob": 0.5})
    rng = np.random.default_rng(0)
    batch = {"rgb": rng.integers(0, 256, (2, 16, 20, 20, 3), np.uint8),
             "flow": rng.integers(0, 256, (2, 16, 20, 20, 2), np.uint8),
             "num_frames": np.array([16, 9], np.int32)}  # fmt: skip
    turned = {**batch, "rgb": batch["rgb"][:, :, :, ::-1], "flow": batch["flow"][:, :, :, ::-1].copy()}
    turned["flow"][..., 0] = 255 - turned["flow"][..., 0]  # a byte's flow is 2 x - 255, but for its scale
    module = SPTAD(config.model, NUM_CLASSES)
    crops = {name: batch[name][:, :, 2:18, 2:18].astype(np.float32) for name in ("rgb", "flow")}
    variables = draw_variables(module, crops, np.ones((2, 16), bool), train=False)
    with quick_compilation():
        forward = make_forward(config, NUM_CLASSES)
        plain, mirrored = forward(variables, batch), forward(variables, turned)
        found = make_forward(change(config, inference={"mirror": True}), NUM_CLASSES)(variables, batch)
    assert np.abs(plain["class_prob"] - mirrored["class_prob"]).max() > 1e-3  # else nothing is tested
    assert found.keys() == plain.keys()
    for name in ("class_prob", "segments_norm"):
        expected = np.concatenate([plain[name], mirrored[name]], axis=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    expected = (np.asarray(plain["clip_prob"]) + np.asarray(mirrored["clip_prob"])) / 2
    np.testing.assert_allclose(found["clip_prob"], expected, rtol=1e-4, atol=1e-6)
