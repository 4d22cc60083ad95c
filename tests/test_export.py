"""Detectors for PyTorch and back: every bit, the same detections in a network of torch.nn, and what is refused."""

import dataclasses
import importlib.util
import json
import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import safetensors.numpy

from sptad_jax import config as config_lib
from sptad_jax.cli import main
from sptad_jax.config import Config, DataConfig, ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.inference.detect import load_detector
from sptad_jax.inference.export import from_torch, read_safetensors, to_torch, torch_name, write_safetensors
from sptad_jax.inference.postprocess import postprocess_video
from sptad_jax.models import sptad
from sptad_jax.models.pretrained import flatten
from sptad_jax.training.checkpoints import Checkpoints, load_for_inference
from tests.reference.arrays import assert_same_bits, close
from tests.reference.parameters import draw_variables, run_once
from tests.reference.tiny_training import CONFIG, new_state

CLASSES = ["run", "jump", "Weitsprung über Öl"]
SOURCE = {"fps": 10.0, "frame_size": 36, "max_frames": 0, "flow": {"method": "dis", "bound": 5.0, "size": 36}}
# The paper's options, all three end points and both streams; small in every size.
PAPER = ModelConfig(width_multiplier=0.125, hidden_dim=16, num_heads=4, dynamic_dim=4, ffn_dim=24, soi_bins=4,
                    num_proposals=32, num_stages=2, conv_mode="direct")  # fmt: skip
SHORT = dataclasses.replace(PAPER, end_points=("Conv3d_2b_1x1", "MaxPool3d_4a_3x3"), num_stages=1)


def make(model: ModelConfig, **data) -> tuple[Config, dict, dict]:
    """A config, random variables of its detector, and the meta of a checkpoint."""
    config = Config(model=model, data=DataConfig(num_frames=16, crop_size=32, stride_test=8, **data))
    inputs = {name: np.zeros((1, 16, 32, 32, 3 if name == "rgb" else 2), np.float32) for name in model.streams}
    variables = dict(draw_variables(sptad.SPTAD(model, len(CLASSES)), inputs, None, train=False))
    return config, variables, {"config": config_lib.to_dict(config), "classes": CLASSES, "source": SOURCE, "step": 7}


@pytest.mark.parametrize("changes", [
    {}, {"fusion": "late", "tower": "sparse_rcnn"}, {"streams": ("rgb",), "pyramid": "high", "fpn_norm": "group"},
    {"streams": ("flow",), "fpn_spatial": "conv", "clip_head": False, "share_stages": True, "num_stages": 3},
], ids=["paper", "late", "rgb", "flow"])  # fmt: skip
def test_round_trip_to_the_bit(tmp_path, changes):
    """A leaf that is lost, transposed, rounded or swapped with one of its shape, under any option; meta that changes;
    a temporary file left behind."""
    model = dataclasses.replace(SHORT, **changes)
    _, variables, meta = make(model)
    for leaf in flatten(variables).values():
        leaf.flat[:3] = [1e-42, -0.0, 3e38][: leaf.size]
    path = tmp_path / "deep" / "detector.safetensors"
    write_safetensors(path, variables, meta)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found, found_meta = read_safetensors(path)
    assert_same_bits(found, variables)
    assert found_meta == json.loads(json.dumps(meta))


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(heads=st.integers(1, 4), size=st.integers(1, 3), rank=st.integers(2, 5), data=st.data())
def test_layouts_by_index(heads, size, rank, data):
    """An axis in the wrong place, heads and channels that are interleaved, query taken for value: against indices."""
    hidden = heads * size
    shape = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    values = np.random.default_rng(0)
    flat = {"params/a/kernel": values.normal(size=shape).astype(np.float32)}
    for name in ("query", "key", "value"):
        flat[f"params/s/{name}/kernel"] = values.normal(size=(hidden, heads, size)).astype(np.float32)
        flat[f"params/s/{name}/bias"] = values.normal(size=(heads, size)).astype(np.float32)
    flat["params/s/attention_output/kernel"] = values.normal(size=(heads, size, hidden)).astype(np.float32)
    state = to_torch(flat)
    assert all(array.flags.c_contiguous for array in state.values())
    for index in np.ndindex(*shape):
        *taps, i, o = index
        assert state["a.weight"][(o, i, *taps)] == flat["params/a/kernel"][index]
    for part, name in enumerate(("query", "key", "value")):
        for d, head, c in np.ndindex(hidden, heads, size):
            row = part * hidden + head * size + c
            assert state["s.attention.in_proj_weight"][row, d] == flat[f"params/s/{name}/kernel"][d, head, c]
            assert state["s.attention.in_proj_bias"][row] == flat[f"params/s/{name}/bias"][head, c]
            row = head * size + c
            weight = state["s.attention.out_proj.weight"]
            assert weight[d, row] == flat["params/s/attention_output/kernel"][head, c, d]
    assert_same_bits(from_torch(state, flat, "x"), flat)


@pytest.mark.parametrize("path, name", [
    ("params/backbone_rgb/Mixed_5b/Branch_2/Conv3d_0b_3x3/conv3d/kernel", "backbone_rgb.Mixed_5b.b2b.conv3d.weight"),
    ("params/backbone_flow/Conv3d_1a_7x7/batch_norm/scale", "backbone_flow.Conv3d_1a_7x7.bn.weight"),
    ("batch_stats/backbone_rgb/Mixed_3b/Branch_3/Conv3d_0b_1x1/batch_norm/var",
     "backbone_rgb.Mixed_3b.b3b.bn.running_var"),
    ("params/Logits/Conv3d_0c_1x1/conv3d/bias", "logits.conv3d.bias"),
    ("params/classification_head/logits/kernel", "classification_head.logits.weight"),
    ("params/rgb/detection_head/stage_0/norm_ffn/scale", "rgb.detection_head.stage_0.norm_ffn.weight"),
    ("params/detection_head/proposal_segments", "detection_head.proposal_segments"),
])  # fmt: skip
def test_names(path, name):
    """A name that pytorch-i3d or torch.nn does not know; exported files that a later version cannot read."""
    assert torch_name(path) == name


@pytest.fixture(scope="module")
def torch_detector():
    """The module docs/torch_detector.py."""
    pytest.importorskip("torch")
    path = pathlib.Path(__file__).parents[1] / "docs" / "torch_detector.py"
    spec = importlib.util.spec_from_file_location("torch_detector", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The paper's detector, small, as a file: (path, config, variables, meta)."""
    config, variables, meta = make(PAPER)
    path = tmp_path_factory.mktemp("export") / "detector.safetensors"
    write_safetensors(path, variables, meta)
    return path, config, variables, meta


def test_torch_detector_gives_the_same_detections(torch_detector, exported):
    """A weight in the wrong layout, or a part of the network that differs: pyramid, SoI Align, attention, stages,
    refinement, clip head, masking, cropping; a short window and segments of many lengths are among the input."""
    import torch

    from sptad_jax.data import augment

    path, config, variables, _ = exported
    rng = np.random.default_rng(1)
    frames = {name: rng.integers(0, 256, (2, 16, 36, 35, c), np.uint8) for name, c in (("rgb", 3), ("flow", 2))}
    num_frames = np.array([16, 9], np.int32)

    def forward(variables):
        inputs = augment.prepare({**frames, "num_frames": num_frames}, config.data, None, train=False)
        mask = np.arange(16) < num_frames[:, None]
        predictions, out = sptad.SPTAD(config.model, len(CLASSES)).apply(variables, inputs, mask, train=False)
        logits, segments_se = sptad.final_predictions(predictions, config.model)
        return {"class_logits": logits, "segments_norm": segments_se, "clip_logits": predictions["clip_logits"],
                "level": out["stage_1/level"]}  # fmt: skip

    ours = jax.device_get(run_once(forward, variables))
    model, _ = torch_detector.load(str(path))
    with torch.no_grad():
        theirs = model({k: torch.from_numpy(v) for k, v in frames.items()}, torch.from_numpy(num_frames))
    assert len(np.unique(ours["level"])) == 4 and ours["class_logits"].std() > 0.1  # nothing trivial is compared
    for name in ("class_logits", "segments_norm", "clip_logits"):
        close(theirs[name], ours[name], 1e-4)

    probabilities = {name: 1 / (1 + np.exp(-ours[f"{name}_logits"])) for name in ("class", "clip")}
    results = [
        postprocess_video(
            class_prob, segments, clip_prob, np.array([0.0, 0.8]), 1.6, 1.7, CLASSES,
            dataclasses.replace(config.inference, min_score=0.0, nms_min_score=0.0))
        for class_prob, segments, clip_prob in (
            (theirs["class_prob"].numpy(), theirs["segments_norm"].numpy(), theirs["clip_prob"].numpy()),
            (probabilities["class"], ours["segments_norm"], probabilities["clip"]))
    ]  # fmt: skip
    assert len(results[0]) == len(results[1]) > 100
    for found, expected in zip(*results):
        assert found["score"] == pytest.approx(expected["score"], rel=1e-3)
        assert found["label"] == expected["label"]
        assert found["segment"] == pytest.approx(expected["segment"], abs=2e-4)  # rounded to 1e-4 s


def test_torch_detector_refuses_other_options(torch_detector, tmp_path):
    """Wrong detections without a word, from a detector whose options the network does not build."""
    for model, data, word in (
        (dataclasses.replace(SHORT, end_points=PAPER.end_points, level_rule="ceil"), {}, "level_rule"),
        (SHORT, {}, "end_points"), (dataclasses.replace(PAPER, num_stages=1), {"pad_value": "minus_one"}, "pad_value"),
    ):  # fmt: skip
        _, variables, meta = make(model, **data)
        write_safetensors(tmp_path / "d.safetensors", variables, meta)
        with pytest.raises(ValueError, match=word):
            torch_detector.load(str(tmp_path / "d.safetensors"))


def test_state_dict_saved_by_torch_comes_back(torch_detector, exported, tmp_path):
    """A detector that went through PyTorch and is refused for its counters num_batches_tracked, or is read wrongly when
    saved in half precision or with its tensors in another order."""
    from safetensors.torch import save_file

    path, _, variables, meta = exported
    model, metadata = torch_detector.load(str(path))
    state = model.state_dict()
    assert any(name.endswith("num_batches_tracked") for name in state)
    save_file(dict(reversed(state.items())), tmp_path / "again.safetensors", metadata)
    found, found_meta = read_safetensors(tmp_path / "again.safetensors")
    assert_same_bits(found, variables)
    assert found_meta == json.loads(json.dumps(meta))
    save_file(model.half().state_dict(), tmp_path / "half.safetensors", metadata)
    found, _ = read_safetensors(tmp_path / "half.safetensors")
    assert_same_bits(found, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), variables))


def rewrite(path, target, change):
    """Saves the file `path` as `target` after `change(tensors, metadata)`."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, target, metadata)


def test_every_misfit_is_named_in_one_sentence(exported, tmp_path):
    """A message that names the first fault only, or a detector that is loaded in part."""

    def change(tensors, metadata):
        del tensors["temporal_fpn.lateral_0.weight"]
        tensors["backbone_rgb.Mixed_9z.b0.conv3d.weight"] = np.zeros(3, np.float32)
        tensors["detection_head.stage_1.attention.in_proj_bias"] = np.zeros(47, np.float32)
        tensors["classification_head.logits.bias"] = np.zeros(3, np.int32)

    rewrite(exported[0], tmp_path / "bad.safetensors", change)
    with pytest.raises(UserError) as raised:
        read_safetensors(tmp_path / "bad.safetensors")
    message = str(raised.value)
    for part in ("bad.safetensors", "4 tensors", "temporal_fpn.lateral_0.weight is missing",
                 "backbone_rgb.Mixed_9z.b0.conv3d.weight is unexpected", "classification_head.logits.bias is missing",
                 "detection_head.stage_1.attention.in_proj_bias is [47] instead of [48]"):  # fmt: skip
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("change, word", [
    (lambda m: m.clear(), "metadata"), (lambda m: m.pop("source"), "source"),
    (lambda m: m.update(step="{"), "metadata"), (lambda m: m.update(classes='"run"'), "classes"),
    (lambda m: m.update(config='{"model": {"eta": "x"}}'), "eta"),
    (lambda m: m.update(config="[]"), "grouped"), (lambda m: m.update(config='{"model": {"eta": -1}}'), "eta"),
])  # fmt: skip
def test_broken_metadata_is_one_sentence(exported, tmp_path, change, word):
    """A traceback, or default options taken in silence, for a file whose metadata was lost or damaged."""
    rewrite(exported[0], tmp_path / "bad.safetensors", lambda _, metadata: change(metadata))
    with pytest.raises(UserError, match=word) as raised:
        read_safetensors(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(raised.value) or word == "eta"


def test_broken_files_are_named(exported, tmp_path):
    """A traceback of the library for a file that is absent, cut short, empty, or a folder."""
    content = exported[0].read_bytes()
    for name, data in {"cut": content[: len(content) // 2], "empty": b"", "text": b"hello, world"}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("cut", "empty", "text", "folder", "absent"):
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            read_safetensors(tmp_path / f"{name}.safetensors")


def test_failed_write_leaves_the_old_file(exported, tmp_path, full_disk):
    """Half a file in place of a good one; a traceback for a full disk; another suffix, which nothing would read."""
    _, _, variables, meta = exported
    path = tmp_path / "d.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="No space left"):
        write_safetensors(path, variables, meta)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"old"
    with pytest.raises(UserError, match=r"\.safetensors"):
        write_safetensors(tmp_path / "d.pt", variables, meta)


def test_command(tmp_path, capsys, monkeypatch):
    """`sptad export` of a run, and `sptad detect` of the file: other weights (raw for averaged ones), options, classes
    or frame settings than those of the run itself; errors that are no single line."""
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)
    state = new_state(CONFIG)
    state = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))
    source = {"fps": 10.0, "frame_size": 20, "max_frames": 0, "flow": None}
    meta = {"config": config_lib.to_dict(CONFIG), "classes": ["run", "jump"], "source": source}
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(state, {}, meta)
    checkpoints.close()
    output = tmp_path / "out" / "d.safetensors"
    assert main(["export", "--checkpoint", str(tmp_path), "--format", "torch-state-dict", "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert_same_bits(read_safetensors(output)[0], load_for_inference(tmp_path)[0])
    run, file = load_detector(tmp_path), load_detector(output)
    assert (file.config, file.classes, file.source) == (run.config, run.classes, run.source)
    assert_same_bits(file.variables, jax.device_get({"params": state.ema_params, "batch_stats": state.batch_stats}))
    for checkpoint, file_name, word in ((tmp_path / "absent", output, "absent"), (tmp_path, "d.onnx", "d.onnx")):
        assert main(["export", "--checkpoint", str(checkpoint), "--output", str(file_name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and word in error
