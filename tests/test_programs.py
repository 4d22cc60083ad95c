"""Detectors as programs: in a process without this package they answer as the detector itself does."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import jax
import numpy as np
import pytest

from sptad_jax import config as config_lib
from sptad_jax.cli import main
from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.inference import programs
from sptad_jax.inference.postprocess import adjust_scores
from sptad_jax.inference.predict import make_forward
from sptad_jax.models.sptad import SPTAD
from tests.reference.parameters import draw_variables, run_once
from tests.reference.tiny_training import CONFIG, new_state, quick_compilation

SERVE = pathlib.Path(__file__).parents[1] / "docs" / "serve.py"
TIMEOUT = 240  # seconds, of a process of its own
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}  # to compile
CLASSES = ["run", "jump", "Weitsprung über Öl"]
SOURCE = {"fps": 10.0, "frame_size": 20, "max_frames": 0, "flow": {"method": "dis", "bound": 5.0, "size": 20}}
MODEL = ModelConfig(
    end_points=("Conv3d_2b_1x1", "MaxPool3d_4a_3x3"), width_multiplier=0.0625, hidden_dim=16, num_heads=2,
    dynamic_dim=4, ffn_dim=24, soi_bins=3, num_proposals=5, num_stages=2,
)  # fmt: skip
# one that takes every other path: late fusion, adaptive samples, linear interpolation, the other deltas
OTHER = dataclasses.replace(
    MODEL, fusion="late", sampling_ratio=0, soi_align="legacy", fpn_interpolation="linear", fpn_norm="group",
    fpn_spatial="conv", delta="inverse_sigmoid", tower="sparse_rcnn", level_rule="ceil", clip_pooling="plain",
)  # fmt: skip
SMALL = dataclasses.replace(MODEL, end_points=("Conv3d_2b_1x1",), pyramid="high", num_stages=1)
CASES = {
    "paper": (MODEL, "product"),
    "late": (OTHER, "sqrt"),
    "rgb without a clip head": (dataclasses.replace(SMALL, streams=("rgb",), clip_head=False), "product"),
    "flow without its clip head": (dataclasses.replace(SMALL, streams=("flow",)), "none"),
}
# Refuses this project and Flax; then runs what follows.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name + " is imported")
sys.meta_path.insert(0, Refuse())
import io, json, runpy, zipfile
import numpy as np
batches = [np.load(path) for path in sys.argv[2:]]
"""
RUN_STABLEHLO = """
import jax.export
with zipfile.ZipFile(sys.argv[1]) as file:
    program = jax.export.deserialize(bytearray(file.read("detector.stablehlo")))
results = [program.call(dict(batch)) for batch in batches]
"""
RUN_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
results = [dict(zip(names, session.run(names, dict(batch)))) for batch in batches]
"""
SAVE = """
for path, result in zip(sys.argv[2:], results):
    np.savez(path.replace(".npz", ".out.npz"), **result)
"""


def make(model: ModelConfig, combine: str = "product") -> tuple[Config, dict, dict]:
    """A config, random variables of its detector, and the meta of a checkpoint."""
    data, inference = DataConfig(num_frames=16, crop_size=16, stride_test=8), InferenceConfig(combine=combine)
    config = Config(model=model, data=data, inference=inference)
    inputs = {name: np.zeros((1, 16, 16, 16, 3 if name == "rgb" else 2), np.float32) for name in model.streams}
    variables = dict(draw_variables(SPTAD(model, len(CLASSES)), inputs, None, train=False))
    return config, variables, {"config": config_lib.to_dict(config), "classes": CLASSES, "source": SOURCE, "step": 7}


def make_batch(config: Config, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise whose contrast differs from window to window; every second window is shorter than F."""
    rng = np.random.default_rng(seed)
    limit = 256 // (1 + np.arange(size))[:, None, None, None, None]
    shapes = programs.input_shapes(config, size)
    batch = {name: rng.integers(0, limit, shapes[name].shape).astype(np.uint8) for name in config.model.streams}
    return batch | {"num_frames": np.where(np.arange(size) % 2, 9, 16).astype(np.int32)}


def expected(config: Config, variables: dict, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What evaluation and `sptad detect` compute from these arrays, with the programs' form of convolutions on a CPU:
    oneDNN's round otherwise, by more than the tolerance where a small network is random (tests/test_conv3d.py)."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, conv_mode="decomposed"))
    with quick_compilation():
        out = jax.device_get(make_forward(config, len(CLASSES))(variables, batch))
    scores = adjust_scores(out["class_prob"], out.get("clip_prob"), config.inference.combine)
    return {"scores": scores, "segments_se": out["segments_norm"]}


def run_alone(code: str, refused: set[str], path: pathlib.Path, batches: list[dict]) -> list[dict[str, np.ndarray]]:
    """The program in `path` on each batch, in a process that may import nothing of `refused`."""
    names = [str(path.with_name(f"batch_{index}.npz")) for index in range(len(batches))]
    for name, batch in zip(names, batches):
        np.savez(name, **batch)
    script = f"REFUSED = {refused!r}{ALONE}{code}{SAVE}"
    done = subprocess.run([sys.executable, "-c", script, str(path), *names], capture_output=True, text=True,
                          timeout=TIMEOUT, cwd=path.parent, env=os.environ | QUICK)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(name.replace(".npz", ".out.npz"))) for name in names]


def check(write, suffix: str, code: str, refused: set[str], folder: pathlib.Path, case: str) -> None:
    """Writes the detector of `case`, runs it alone at batch 1 and 3, and compares with evaluation."""
    config, variables, meta = make(*CASES[case])
    path = folder / "deep" / f"detector{suffix}"
    write(path, variables, meta)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary
    batch = make_batch(config, 3)
    wanted = expected(config, variables, batch)
    assert wanted["scores"].std() > 0.01  # nothing trivial is compared
    sizes = (1, 3)
    parts = [{name: value[:size] for name, value in batch.items()} for size in sizes]
    for size, found in zip(sizes, run_alone(code, refused, path, parts)):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], value[:size], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_stablehlo_in_a_process_of_its_own(tmp_path, case):
    """A program that needs this package to be read, holds a batch size, forgets a parameter, the scaling of bytes, the
    padding of short windows or the clip probability, takes that where there is none, or mixes up its outputs."""
    check(programs.write_stablehlo, ".zip", RUN_STABLEHLO, {"sptad_jax", "flax"}, tmp_path, case)


@pytest.mark.parametrize("case", CASES)
def test_onnx_in_a_process_of_its_own(tmp_path, case):
    """The same of ONNX, which needs not even JAX; and metadata that is lost."""
    pytest.importorskip("jax2onnx")
    import onnx

    check(programs.write_onnx, ".onnx", RUN_ONNX, {"sptad_jax", "flax", "jax"}, tmp_path, case)
    model = onnx.load(tmp_path / "deep" / "detector.onnx")
    onnx.checker.check_model(model)
    props = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert props == json.loads(json.dumps(make(*CASES[case])[2]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The detector "paper" as a StableHLO file: (path, config, variables, meta)."""
    config, variables, meta = make(*CASES["paper"])
    path = tmp_path_factory.mktemp("programs") / "detector.zip"
    programs.write_stablehlo(path, variables, meta)
    return path, config, variables, meta


def test_stablehlo_for_each_platform(exported):
    """A program that was lowered for the machine that wrote it alone, or whose accelerators get the convolutions that
    only a CPU is fast at, or the other way round."""
    with zipfile.ZipFile(exported[0]) as file:
        program = jax.export.deserialize(bytearray(file.read("detector.stablehlo")))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert "[b, 0, 1, 2, f]x" in program.mlir_module()  # 3-D convolutions, as accelerators take them
    with quick_compilation():
        text = jax.jit(program.call).lower(make_batch(exported[1], 1)).compile().as_text()
    assert "convolution" in text and "b012f" not in text and " conditional(" not in text


def test_direct_convolutions_give_the_same(exported):
    """The branch of accelerators, which the other tests do not run: other numbers than the CPU's."""
    _, config, variables, _ = exported
    direct = dataclasses.replace(config, model=dataclasses.replace(config.model, conv_mode="direct"))
    batch = make_batch(config, 2)
    found = jax.device_get(run_once(programs.make_program(variables, direct, len(CLASSES)), batch))
    for name, value in expected(config, variables, batch).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_meta_tells_what_a_server_needs(exported):
    """Inputs that are described otherwise than the program takes them; options, names or frame settings left out."""
    path, _, _, meta = exported
    with zipfile.ZipFile(path) as file:
        found = json.loads(file.read("meta.json"))
        program = jax.export.deserialize(bytearray(file.read("detector.stablehlo")))
    inputs = {name: {"shape": [str(dim) if not isinstance(dim, int) else dim for dim in aval.shape],
                     "dtype": aval.dtype.name}
              for name, aval in jax.tree.unflatten(program.in_tree, program.in_avals)[0][0].items()}
    assert found.pop("inputs") == inputs
    assert found.pop("outputs") == ["scores", "segments_se"]
    assert found == json.loads(json.dumps(meta))


@contextlib.contextmanager
def server(path):
    """docs/serve.py with the file `path`, at a free port; gives its address."""
    script = f"REFUSED = {{'sptad_jax', 'flax'}}{ALONE.partition('import io')[0]}" + (
        f"import runpy; sys.argv[0] = {str(SERVE)!r}; runpy.run_path({str(SERVE)!r}, run_name='__main__')")
    command = [sys.executable, "-c", script, str(path), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=path.parent,
                          env=os.environ | QUICK) as process:  # fmt: skip
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise AssertionError(process.communicate(timeout=TIMEOUT)[1])
            yield address
        finally:
            process.kill()


def post(address: str, body: bytes):
    with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=TIMEOUT) as answer:
        return json.load(answer)


def test_server_of_the_documents(exported):
    """An example that does not run, needs this package, gives segments in other units, or dies of a bad request."""
    path, config, variables, _ = exported
    batch = make_batch(config, 2, seed=5)  # the second window is short
    with server(path) as address:
        for row, num_frames in enumerate(batch["num_frames"]):
            window = {name: value[row] for name, value in batch.items() if row or name != "num_frames"}
            out = {name: value[row] for name, value in expected(config, variables, batch).items()}
            seconds = np.clip(out["segments_se"] * 1.6, 0, num_frames / 10)
            wanted = sorted(((score, CLASSES[a], *seconds[n]) for (n, a), score in np.ndenumerate(out["scores"])
                             if score >= 0.1), reverse=True)
            buffer = io.BytesIO()
            np.savez(buffer, **window)
            for body in (b"no npz", b"", buffer.getvalue()):
                if body == buffer.getvalue():
                    found = post(address, body)
                else:
                    with pytest.raises(urllib.error.HTTPError, match="400"):
                        post(address, body)
            assert len(found) == len(wanted) > 2
            for got, (score, label, *segment) in zip(found, wanted):
                assert got["label"] == label and got["score"] == pytest.approx(score, abs=1e-5)
                assert got["segment"] == pytest.approx(segment, abs=1e-4)


@pytest.mark.parametrize("write, suffix", [(programs.write_stablehlo, ".zip"), (programs.write_onnx, ".onnx")])
def test_other_suffix_is_one_sentence(exported, tmp_path, write, suffix):
    """A file that nothing recognises, and minutes lost before that is said."""
    with pytest.raises(UserError, match=rf"d\.safetensors: .*\{suffix}; give a file name that ends so"):
        write(tmp_path / "d.safetensors", *exported[2:])
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(exported, tmp_path, monkeypatch):
    """A traceback where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"jax2onnx.*\[onnx\]"):
        programs.write_onnx(tmp_path / "d.onnx", *exported[2:])


def test_failed_write_leaves_the_old_file(exported, tmp_path, full_disk):
    """Half a program in place of a good one, or a traceback, where the disk is full."""
    path = tmp_path / "d.zip"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="No space left"):
        programs.write_stablehlo(path, *exported[2:])
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"old"


@pytest.fixture
def run_folder(tmp_path):
    """The work folder of a training, with one checkpoint."""
    from sptad_jax.training.checkpoints import Checkpoints

    meta = {"config": config_lib.to_dict(CONFIG), "classes": ["run", "jump"], "source": SOURCE}
    with Checkpoints(tmp_path / "run" / "checkpoints", 1) as checkpoints:
        checkpoints.save(new_state(CONFIG), {}, meta)
    return tmp_path / "run"


def test_command(run_folder, tmp_path, capsys):
    """`sptad export` that ignores --format, or takes no .safetensors file as it says."""
    tensors, program = tmp_path / "d.safetensors", tmp_path / "d.zip"
    for checkpoint, form, output in ((run_folder, "torch-state-dict", tensors), (tensors, "stablehlo", program)):
        assert main(["export", "--checkpoint", str(checkpoint), "--format", form, "--output", str(output)]) == 0
        assert capsys.readouterr().out == f"{output}: step 0, 2 classes\n"
    with zipfile.ZipFile(program) as file:
        assert sorted(file.namelist()) == ["detector.stablehlo", "meta.json"] and file.testzip() is None


@pytest.mark.usefixtures("orbax_leftovers")
@pytest.mark.parametrize("damage", ["array", "class", "shape"])
def test_damaged_checkpoint_is_one_sentence(run_folder, tmp_path, capsys, monkeypatch, damage):
    """A traceback, or a file of something else than was trained, from a checkpoint that is cut or of parts that do not
    belong together."""
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)
    if damage == "array":
        for path in run_folder.rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (place,) = run_folder.glob("checkpoints/*/meta/metadata")
        meta = json.loads(place.read_text())
        meta["classes"] = ["run", "run"] if damage == "class" else ["run", "jump", "fly"]
        place.write_text(json.dumps(meta))
    output = tmp_path / "d.zip"
    arguments = ["export", "--checkpoint", str(run_folder), "--format", "stablehlo", "--output", str(output)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --checkpoint {run_folder}") and error.count("\n") == 1
    assert not output.exists()
