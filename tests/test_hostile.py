"""Two hundred files that are no whole videos, and sixty damaged checkpoints: a sentence each, and no harm to others."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import safetensors.numpy

from sptad_jax import config as config_lib
from sptad_jax.errors import UserError
from sptad_jax.inference.detect import load_detector
from sptad_jax.inference.export import write_safetensors
from sptad_jax.training.checkpoints import load_for_inference
from tests.reference.detector_run import SOURCE, make_run
from tests.reference.hostile_videos import make_videos
from tests.reference.tiny_training import CONFIG, change
from tests.test_outputs import SCHEMA

TIMEOUT = 300  # seconds for all videos; on a free machine they take about ten


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_two_hundred_videos_in_one_command(run_folder, tmp_path):
    """A traceback, a crash of the process or a hang; a broken file that is passed over in silence, takes two lines, or
    spoils those beside it; labels that cannot be drawn on an odd picture."""
    good = make_videos(tmp_path / "videos")
    command = [sys.executable, "-m", "sptad_jax.cli", "detect", str(tmp_path / "videos"), "--checkpoint",
               str(run_folder), "--output", str(tmp_path / "a.json"), "--output", str(tmp_path / "tracks" / "a.vtt"),
               "--render", str(tmp_path / "rendered"), "--threshold", "0"]  # fmt: skip
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment, cwd=tmp_path)
    out, err = (text.decode().splitlines() for text in (done.stdout, done.stderr))
    assert done.returncode == 2, err[-5:]
    given = [path for path in (tmp_path / "videos").iterdir() if path.name != "folder.mp4"]
    lines = [line for line in err if " of video a second" not in line]  # progress, on a busy machine
    assert all(line.startswith("error: ") for line in lines), [line for line in lines if line[:7] != "error: "]
    *each, total = lines
    found = [line for line in out if line.startswith(str(tmp_path / "videos"))]
    assert len(each) + len(found) == len(given) >= 200 and f"{len(each)} of {len(given)} videos" in total
    assert len({line.split(": ")[1] for line in each}) == len(each) > 60, "one sentence for each"

    results = json.loads((tmp_path / "a.json").read_text())
    jsonschema.validate(results, SCHEMA)
    assert len(results["results"]) == len(found)
    alike = {name for name in good if name.startswith("good") or "really" in name or name.endswith("mp4")}
    unread = {name for name in good if any(f"/{name}: " in line for line in each)}
    assert not unread and len(alike) > 10
    assert results["results"]["good0"] == results["results"]["really_mp4"] == results["results"]["跑 步"] != []
    assert results["results"]["good5"] == results["results"]["really_gif"] != []
    assert len(list((tmp_path / "rendered").iterdir())) == len(list((tmp_path / "tracks").iterdir())) == len(found)


def test_named_files_and_folders(run_folder, tmp_path, capsys):
    """What is not found in folders: any ending, empty folders, missing files; a text file is no video whatever it
    is called."""
    from sptad_jax.cli import main

    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no video")
    given = [str(tmp_path / name) for name in ("empty", "a.txt", "absent", "absent/a.mp4")]
    assert main(["detect", *given, str(tmp_path) + "\0", "--checkpoint", str(run_folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all(name in line for name, line in zip(given, lines)) and "5 of 5" in lines[-1]


def config_with(**groups):
    return config_lib.to_dict(change(CONFIG, inference={"min_score": 0.0}, **groups))


BROKEN_META = {
    "no classes": {"classes": []}, "one class less": {"classes": ["run"]}, "one more": {"classes": ["a", "b", "c"]},
    "twice": {"classes": ["run", "run"]}, "classes null": {"classes": None}, "a word": {"classes": "ab"},
    "numbers": {"classes": [1, 2]}, "an object": {"classes": {"run": 0, "jump": 1}}, "source null": {"source": None},
    "source list": {"source": [10]}, "source empty": {"source": {}}, "config null": {"config": None},
    "config list": {"config": [1]}, "config number": {"config": {"model": 3}},
    "unknown option": {"config": {"model": {"colour": 1}}}, "mistyped": {"config": {"model": {"num_stages": "four"}}},
    "wider": {"config": config_with(model={"hidden_dim": 32})}, "more stages": {"config": config_with(model={
        "num_stages": 2})}, "other streams": {"config": config_with(model={"streams": ("rgb", "flow")})},
    "impossible": {"config": config_with(data={"num_frames": 17})}, "huge crop": {"config": config_with(data={
        "crop_size": 5000})}, "no batch": {"config": config_with() | {"inference": {"batch_size": 0}}},
    **{f"{name} {value!r:.12}": {"source": SOURCE | {name: value}} for name, values in {
        "fps": (0, -1.0, "ten", None, 1e9, True), "frame_size": (0, 8, -20, 10**7, 20.5, "x"),
        "max_frames": (-1, "x", None), "fit": ("x", None, ["crop"]),
        "flow": ("tvl1", [], {}, {"method": "x", "bound": 5.0, "size": 20}, {"method": "dis", "bound": 0, "size": 20}),
    }.items() for value in values},
}  # fmt: skip


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_detector(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and "Traceback" not in text, text
    return text


@pytest.mark.parametrize("name", BROKEN_META)
def test_checkpoints_whose_parts_disagree(run_folder, tmp_path, name):
    """Class names, options and settings that do not belong to the weights: detections under wrong names, shapes that
    fail deep in the network, endless memory."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (place,) = folder.glob("checkpoints/*/meta/metadata")
    meta = json.loads(place.read_text())
    place.write_text(json.dumps(meta | BROKEN_META[name]))
    refusal(folder)


@pytest.mark.usefixtures("orbax_leftovers")
def test_damaged_checkpoint_files(run_folder, tmp_path):
    """Each file of a checkpoint removed, cut, replaced or overwritten: it is refused in a sentence, or, where it does
    not matter for detection, the detector is the same. No other exception, no other weights."""
    expected = load_for_inference(run_folder)[0]["params"]
    names = [path.relative_to(run_folder) for path in sorted(run_folder.rglob("*")) if path.is_file()]
    damages = {"removed": None, "cut": lambda b: b[:len(b) // 2], "other": lambda b: b'[1, {"a": null}]'}
    refused = 0
    for number, name in enumerate(names):
        kinds = damages if "metadata" in name.name.lower() or "manifest" in name.name else [[*damages][number % 3]]
        for kind in kinds:
            folder = tmp_path / f"{number}{kind}"
            shutil.copytree(run_folder, folder)
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            if damages[kind]:
                (folder / name).write_bytes(damages[kind](content))
            try:
                detector = load_detector(folder)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and str(folder) in str(error), (name, kind, error)
            else:
                same = jax_equal(expected, detector.variables["params"])
                assert same, (name, kind)
            shutil.rmtree(folder)
    assert refused > 10


def test_damage_prints_one_line(run_folder, tmp_path):
    """The tracebacks that Orbax's threads print by themselves, after the sentence."""
    shutil.copytree(run_folder, tmp_path / "run")
    for path in (tmp_path / "run").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    command = [sys.executable, "-m", "sptad_jax.cli", "detect", "a.mp4", "--checkpoint", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: --checkpoint {tmp_path / 'run'}: ")


def jax_equal(a, b):
    import jax

    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_swapped_parts_of_two_checkpoints(run_folder, tmp_path):
    """The optimiser's arrays in place of the model's, or an item of nothing."""
    for item in ("model", "meta"):
        for other in ("optimizer", "data", "meta", "model"):
            folder = tmp_path / f"{item}{other}"
            shutil.copytree(run_folder, folder)
            (step,) = folder.glob("checkpoints/[0-9]*")
            if item != other:
                shutil.rmtree(step / item)
                shutil.copytree(step / other, step / item)
                refusal(folder)
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["empty", "garbage", "cut", "long header", "no metadata", "broken metadata", "classes",
                                  "tensor less", "NaN text", "folder"])  # fmt: skip
def test_damaged_exports(run_folder, tmp_path, name):
    """A safetensors file that is cut, without metadata, or of another detector."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, *load_for_inference(run_folder))
    content = path.read_bytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        meta = dict(file.metadata())
    tensors = safetensors.numpy.load(content)
    rewritten = {
        "no metadata": (tensors, None), "broken metadata": (tensors, meta | {"config": "{"}),
        "classes": (tensors, meta | {"classes": '["run", "jump", "fly"]'}),
        "NaN text": (tensors, meta | {"source": "NaN"}),
        "tensor less": (dict(list(tensors.items())[1:]), meta),
    }  # fmt: skip
    if name in rewritten:
        safetensors.numpy.save_file(rewritten[name][0], path, rewritten[name][1])
    elif name == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "garbage": bytes(range(256)) * 9, "cut": content[:len(content) // 2],
                          "long header": b"\xff" * 7 + b"\0" + content[8:]}[name])
    refusal(path)


def test_no_checkpoint(tmp_path):
    """A folder of something else, a file, nothing."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "run" / "checkpoints" / "abc").mkdir(parents=True)
    for name in ("file", "run", "absent", pathlib.Path("run") / "checkpoints"):
        refusal(tmp_path / name)
