"""`sptad inspect`: parts against XLA's count, published figures and formulas; proposals against the forward pass."""

import contextvars
import dataclasses

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.cli import main
from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig
from sptad_jax.data.streams import read_streams
from sptad_jax.data.video import write_video
from sptad_jax.errors import UserError
from sptad_jax.inference import inspect
from sptad_jax.inference.detect import Detector, batch_windows, cut_windows
from sptad_jax.inference.export import variable_shapes
from sptad_jax.inference.predict import make_forward
from sptad_jax.models import i3d, sptad
from tests.reference.detector_run import make_run
from tests.reference.parameters import draw_variables
from tests.reference.tiny_training import quick_compilation

SMALL = ModelConfig(
    streams=("rgb",), width_multiplier=0.0625, end_points=("Conv3d_2b_1x1", "MaxPool3d_4a_3x3"), hidden_dim=8,
    num_heads=2, dynamic_dim=4, ffn_dim=12, soi_bins=2, num_proposals=8, num_stages=2)  # fmt: skip
SOURCE = {"fps": 10.0, "frame_size": 16, "max_frames": 0, "flow": None}


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)


@pytest.fixture(scope="module")
def full():
    """The paper's detector for THUMOS14, by path."""
    return {part.path: part for part in inspect.describe(Config(), 20)}


def test_published_figures(full):
    """Operations or parameters of I3D lost or counted twice: 12.29 M and 81.7 GMAC for RGB, 12.27 M and 75.2 GMAC for
    flow, as the published layers give them; a block with the shape of another."""
    rgb, flow = full[("backbone_rgb",)], full[("backbone_flow",)]
    assert (rgb.parameters, flow.parameters) == (12_287_264, 12_265_312)
    assert rgb.flops / 2e9 == pytest.approx(81.7, abs=0.05) and flow.flops / 2e9 == pytest.approx(75.2, abs=0.05)
    assert full[("backbone_rgb", "stem")].shapes == ((128, 24, 24, 192),)
    assert full[("backbone_rgb", "Mixed_3b")].shapes == ((128, 12, 12, 256),)
    assert rgb.shapes == ((128, 12, 12, 480), (64, 6, 6, 832), (32, 3, 3, 1024))
    assert full[("temporal_fpn",)].shapes == ((128, 256), (64, 256), (32, 256), (16, 256))


def test_total_is_what_xla_counts(full, monkeypatch):
    """An operation that the walk through the program passes over. XLA leaves taps on padding out and counts operations
    element by element, under one per cent here, so the padding is made explicit for it."""

    def padded(x, kernel, strides, mode):
        sizes = zip(x.shape[1:4], kernel.shape[:3], strides)
        totals = [max((-(-size // stride) - 1) * stride + taps - size, 0) for size, taps, stride in sizes]
        x = jnp.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID",
                                            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))  # fmt: skip

    monkeypatch.setattr(i3d, "conv3d", padded)
    model = sptad.SPTAD(dataclasses.replace(Config().model, conv_mode="direct"), 20)
    inputs = {name: jax.ShapeDtypeStruct((1, 256, 96, 96, channels), jnp.float32)
              for name, channels in (("rgb", 3), ("flow", 2))}  # fmt: skip
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, None, train=False), inputs)
    lowered = jax.jit(lambda v, x: model.apply(v, x, None, train=False)).lower(variables, inputs)
    assert full[()].flops == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=2), taps=st.integers(1, 3),
                  stride=st.integers(1, 2), groups=st.integers(1, 3), rows=st.integers(1, 4))  # fmt: skip
def test_operations_equal_xla(sizes, taps, stride, groups, rows):
    """Axes of a product taken for one another, groups or strides left out: exactly XLA's own count."""
    channels, features = (groups * size for size in sizes)
    shapes = [(rows, taps + 3, channels), (taps, channels // groups, features), (rows, features, 4)]

    def function(x, kernel, other):
        y = jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"),
                                         feature_group_count=groups)  # fmt: skip
        return jax.jit(lambda y: jnp.einsum("btc,bcd->bdt", y, other))(y)

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = sum(inspect._flops(eqn) for _, eqn in inspect._equations(jax.make_jaxpr(function)(*args).jaxpr))
    assert found == jax.jit(function).lower(*args).cost_analysis()["flops"]


def test_a_stage_by_formula(full):
    """Work or parameters that stand beside the wrong name: each part of a stage from its matrices."""
    dim, num, bins, dynamic, hidden, classes = 256, 50, 16, 64, 2048, 20
    stage = {part.path[-1]: part for path, part in full.items() if path[:-1] == ("detection_head", "stage_2")}
    macs = {
        "soi_align": 0,
        "self_attention": 4 * num * dim**2 + 2 * num**2 * dim,
        "sparse_interaction": num * dim * 2 * dim * dynamic + 2 * num * bins * dim * dynamic + num * bins * dim * dim,
        "feed_forward": 2 * num * dim * hidden,
        "branches": num * dim * (classes + 2 * dim + 2),
    }
    values = {
        "soi_align": 0,
        "self_attention": 4 * (dim**2 + dim) + 2 * dim,
        "sparse_interaction": (dim + 1) * 2 * dim * dynamic + bins * dim * dim + dim + 2 * (dynamic + 3 * dim),
        "feed_forward": 2 * dim * hidden + hidden + dim + 2 * dim,
        "branches": (dim + 1) * (classes + 2 * dim + 2),
    }
    assert {name: part.flops for name, part in stage.items()} == {name: 2 * n for name, n in macs.items()}
    assert {name: part.parameters for name, part in stage.items()} == values
    assert stage["soi_align"].shapes == ((50, 16, 256),) and stage["branches"].shapes == ((50, 20), (50, 2))
    assert full[("detection_head", "proposals")].parameters == num * (dim + 2)
    assert full[("classification_head",)].parameters == 2 * (480 + 832 + 1024) * 20 + 20


@pytest.mark.parametrize("options", [
    {}, {"streams": ("rgb", "flow"), "fusion": "late", "tower": "sparse_rcnn"}, {"share_stages": True, "remat": True},
    {"pyramid": "high", "fpn_norm": "group", "clip_head": False}, {"pyramid": "single", "fpn_spatial": "conv"},
], ids=["small", "late", "shared", "high", "single"])  # fmt: skip
def test_parts_add_up(options, monkeypatch):
    """A module under some option that no row holds, or two do; names that FLAX_PROFILE=0 takes away."""
    monkeypatch.setattr(nn.module, "_use_named_call", contextvars.ContextVar("named", default=False))
    config = Config(model=dataclasses.replace(SMALL, **options), data=DataConfig(num_frames=16, crop_size=16))
    parts = inspect.describe(config, 3)
    paths = [part.path for part in parts]
    assert len(set(paths)) == len(paths) and paths[-1] == ()
    for part in parts:
        children = [p for p in parts if len(p.path) == len(part.path) + 1 and p.path[: len(part.path)] == part.path]
        if children:
            assert part.parameters == sum(p.parameters for p in children), part.path
            assert part.flops == sum(p.flops for p in children), part.path
    expected = sum(np.prod(leaf.shape) for path, leaf in variable_shapes(config, 3).items() if path[:6] == "params")
    assert parts[-1].parameters == expected
    levels = {"high": 4, "single": 1, "inter": 3}[config.model.pyramid]
    assert len(inspect.level_steps(parts)) == levels


TINY = {"end_points": ("Conv3d_2b_1x1",), "pyramid": "single", "num_stages": 1}


def make_detector(**options):
    config = Config(model=dataclasses.replace(SMALL, **options), inference=InferenceConfig(batch_size=2),
                    data=DataConfig(num_frames=16, crop_size=16, stride_test=8))  # fmt: skip
    inputs = {name: np.zeros((1, 16, 16, 16, 3 if name == "rgb" else 2), np.float32) for name in config.model.streams}
    variables = dict(draw_variables(sptad.SPTAD(config.model, 3), inputs, None, train=False))
    flow = {"method": "dis", "bound": 5.0, "size": 16} if "flow" in config.model.streams else None
    source = SOURCE | {"flow": flow}
    return Detector(make_forward(config, 3), variables, config, ("a", "b", "c"), source)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "x.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (45, 20, 24, 3), np.uint8)
    write_video(path, frames, 10)
    return path


@pytest.mark.parametrize("options", [{}, {"streams": ("rgb", "flow"), "fusion": "late", "level_rule": "round"}],
                         ids=["early", "late"])  # fmt: skip
def test_tracks_equal_the_forward_pass(video, options):
    """Stages, proposals of several streams or windows in another order; windows that only fill up a batch; a level by
    another rule than the detector's; other frames than those that detection sees."""
    detector = make_detector(**options)
    model, told = detector.config.model, []
    with quick_compilation():
        tracks = inspect.follow(detector, video, told.append)
        streams, _, duration_sec = read_streams(video, detector.source)
        blocks = [{name: streams[name] for name in model.streams}]
        outs = [jax.device_get(detector.forward(detector.variables, batch))
                for batch in batch_windows(cut_windows(blocks, 16, 8), 2)]  # fmt: skip
    expected = {name: np.concatenate([out[name] for out in outs])[:5] for name in outs[0]}
    assert tracks.start_sec.tolist() == pytest.approx([0, 0.8, 1.6, 2.4, 2.9]) and tracks.window_sec == 1.6
    assert tracks.duration_sec == duration_sec and told == pytest.approx([2.4, 4.0, 4.5])
    np.testing.assert_allclose(tracks.segments_norm[:, -1], expected["segments_norm"], atol=1e-5)
    score = expected["class_prob"] * expected["clip_prob"][:, None]
    np.testing.assert_allclose(tracks.score, score.max(-1), rtol=1e-4)
    np.testing.assert_array_equal(tracks.label, score.argmax(-1))

    first, level = inspect.initial_proposals(detector, 3)
    np.testing.assert_allclose(tracks.segments_norm[:, 0], np.broadcast_to(first, (5, *first.shape)), atol=1e-6)
    np.testing.assert_array_equal(tracks.level[:, 0], np.broadcast_to(level, (5, len(level))))
    read = tracks.segments_norm[:, :-1]
    exact = 2 + np.log2(np.maximum(read[..., 1] - read[..., 0], 1e-9))
    away = np.abs(exact * 2 - np.round(exact * 2)) > 1e-3  # the rule may fall either way on a bound
    by_rule = np.clip(np.floor(exact + (0.5 if options else 0)), 0, 2)
    np.testing.assert_array_equal(tracks.level[away], by_rule[away])
    assert len(np.unique(tracks.level)) == 3


def test_rate_of_a_fixed_number_of_frames(video):
    """Seconds by the rate of training, where ActivityNet's fixed length of a video gives each its own."""
    detector = make_detector(**TINY)
    with quick_compilation():
        tracks = inspect.follow(dataclasses.replace(detector, source=SOURCE | {"max_frames": 20}), video)
    assert tracks.window_sec == pytest.approx(16 * 4.5 / 20) and tracks.start_sec.tolist() == pytest.approx([0, 0.9])


def test_diverged_weights(video):
    """Pictures of proposals that are nowhere."""
    detector = make_detector(**TINY)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), detector.variables)
    with quick_compilation(), pytest.raises(UserError, match="not finite"):
        inspect.follow(dataclasses.replace(detector, variables=broken), video)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_command(run_folder, video, tmp_path, capsys):
    """Facts of another checkpoint; an exported file that differs from its run; a page that does not know the video."""
    assert main(["inspect", str(run_folder)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "step 0" in lines["checkpoint"] and "2: run, jump" in lines["classes"] and "rgb" in lines["streams"]
    assert "model.hidden_dim=16" in lines["config"] and "model.num_heads" in lines["config"]
    assert list(lines)[-1] == "total"
    file = tmp_path / "detector.safetensors"
    assert main(["export", "--checkpoint", str(run_folder), "--output", str(file)]) == 0
    capsys.readouterr()
    with quick_compilation():
        assert main(["inspect", str(file), "--report", str(tmp_path / "r"), "--video", str(video)]) == 0
    exported = capsys.readouterr().out
    assert exported.replace(str(file), str(run_folder)).startswith(out.rstrip())
    assert "x.mp4" in (tmp_path / "r" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments, words", [
    (["nowhere"], "nowhere"), (["{file}"], "cannot be read as .safetensors"),
    (["{run}", "--video", "x.mp4"], "--report"), (["{run}", "--report", "/dev/null/x"], "--report /dev/null/x"),
    (["{run}", "--report", "{new}", "--video", "gone.mp4"], "gone.mp4"),
    (["{run}", "--report", "{new}", "--video", "{new}"], "new"),
])  # fmt: skip
def test_refusals(run_folder, tmp_path, capsys, arguments, words):
    """A traceback, or several lines, for what a person can mistake; a page in spite of it."""
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    places = {"run": run_folder, "file": tmp_path / "a.safetensors", "new": tmp_path / "new"}
    with quick_compilation():
        assert main(["inspect", *(argument.format(**places) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and words in err
    assert not (tmp_path / "new" / "index.html").exists()
