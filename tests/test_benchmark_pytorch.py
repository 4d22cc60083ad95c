"""The benchmark against PyTorch: that both sides compute the same, and that it says so where they do not."""

import argparse
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.models.pretrained import flatten
from sptad_jax.models.sptad import SPTAD
from tests.reference.parameters import draw_variables

pytest.importorskip("torch")

from benchmarks import jax_side, pytorch

FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
TINY = ["data.crop_size=32", "model.width_multiplier=0.125", "model.conv_mode=direct", "model.num_stages=2",
        "model.hidden_dim=64", "model.ffn_dim=64", "model.num_proposals=16", "data.max_targets=8",
        'model.streams=["rgb"]']


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*arguments): the whole script on a tiny detector, compiled without XLA's optimiser."""

    def draw_state(config):
        inputs = {name: jnp.zeros((1, 16, 32, 32, 3)) for name in config.model.streams}
        return flatten(draw_variables(SPTAD(config.model, jax_side.NUM_CLASSES), inputs, None, train=False))

    monkeypatch.setenv("XLA_FLAGS", FAST)  # of the processes that it starts
    monkeypatch.setattr(jax_side, "draw_state", draw_state)
    monkeypatch.setattr(pytorch, "SECOND_STEP_TOLERANCE", 0.0)  # so small a network agrees after a step, too
    pytorch.draw_states.cache_clear()

    def run(*arguments):
        options = [part for option in TINY for part in ("--set", option)]
        path = tmp_path / "pytorch.json"
        monkeypatch.setattr(sys, "argv", ["pytorch", "--frames", "16", "--repeats", "2", "--output", str(path),
                                          *options, *arguments])
        pytorch.main()
        return json.loads(path.read_text())

    return run


def test_sides_agree_and_are_timed(run, capsys):
    """A side that computes something else (network, gradient, loss, matching, clipping, optimiser), a part or a side
    that is missing from the table, seconds that do not fit frames a second, memory that is not a training step's."""
    result = run("--parts", "backbone", "gradient", "detector", "step")
    assert [(row["part"], row["side"]) for row in result["rows"]] == [
        ("backbone", "pytorch"), ("backbone", "jax"), ("gradient", "pytorch"), ("gradient", "jax"),
        ("detector", "pytorch"), ("detector", "jax"), ("step", "pytorch"), ("step", "jax"), ("step", "jax, remat"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["input"] == "1x16x32x32" and row["dtype"] == "float32"
        assert row["frames/s"] == pytest.approx(16 / row["seconds"])
        if row["side"] != "jax, remat":
            assert row[f"to {row['side']}"] == 1
        if sys.platform == "linux":
            assert (row["part"] == "step") == (100 < row.get("peak MiB", 0) < 4000)
    flops = {row["part"]: row["TFLOP/s"] * row["seconds"] for row in result["rows"] if row["side"] == "jax"}
    assert 2 < flops["gradient"] / flops["backbone"] < 4
    assert "gradient" in capsys.readouterr().out


def test_a_difference_is_told(run, monkeypatch):
    """Timing of two networks that are not the same: here one has another kernel."""
    def to_other(state):
        state = to_torch(state)
        name = next(name for name in state if "Mixed_3c" in name and name.endswith("conv3d.weight"))
        return state | {name: state[name] * 1.1}

    to_torch = jax_side.to_torch
    monkeypatch.setattr(jax_side, "to_torch", to_other)
    with pytest.raises(SystemExit, match=r"backbone, 1x16x32x32, float32: jax and pytorch differ by .* in Mixed_3c"):
        run("--parts", "backbone")


def test_a_side_that_fails(run, tmp_path):
    """An error of a library that is lost, waited for, or that ends the process before the next order; one that ends it
    without a sentence."""
    config = pytorch.make_config(argparse.Namespace(quick=False, set=TINY), "float32", 16)
    with pytorch.Side("pytorch") as side:
        pytorch.save_arrays(config, str(tmp_path))
        state = dict(np.load(tmp_path / "state_pytorch.npz"))
        name = next(name for name in state if name.endswith("conv3d.weight"))
        np.savez(tmp_path / "state_pytorch.npz", **(state | {name: state[name][:, :1]}))
        with pytest.raises(RuntimeError):
            side.make("backbone", config, "float32", str(tmp_path))
            side.ask("run")
        pytorch.save_arrays(config, str(tmp_path))
        assert side.make("backbone", config, "float32", str(tmp_path)) == 0 and side.ask("run") > 0
        (tmp_path / "batch.npz").unlink()
        with pytest.raises(SystemExit, match="pytorch: its process ended"):
            side.make("backbone", config, "float32", str(tmp_path))


def test_imports_of_an_accelerator_image():
    """A benchmark that does not start where jax, flax, optax, numpy, scipy and torch are all there is."""
    code = """if True:
        import sys
        for name in ("safetensors", "tqdm", "orbax", "grain", "av", "cv2", "matplotlib", "tensorflow_datasets"):
            sys.modules[name] = None
        import importlib
        import benchmarks.side
        from benchmarks.__main__ import SERIES
        for name in SERIES:
            importlib.import_module(f"benchmarks.{name}")
        benchmarks.torch_side.load_network()
    """
    subprocess.run([sys.executable, "-c", code], cwd=pytorch.ROOT, check=True)


def test_peak_memory_of_a_child():
    """A peak that is the parent's, or one before the measurement: this process grows by 1 GiB and the child does not
    inherit it, and what the child used at first does not count."""
    held = np.ones(2**27)
    code = """if True:
        import numpy
        from benchmarks.side import forget_peak, peak_resident
        numpy.ones(2**26)
        before = peak_resident()
        forget_peak()
        after = peak_resident()
        numpy.ones(2**25)
        print(before, after, peak_resident())
    """
    out = subprocess.run([sys.executable, "-c", code], cwd=pytorch.ROOT, check=True, capture_output=True, text=True)
    before, after, last = (int(word) / 2**20 for word in out.stdout.split())
    assert 512 < before < 800 and after < before - 400 and 200 < last - after < 300
    assert held[0] == 1
