"""Frames and flow of other tools: bytes taken as they are, in the right order and unit, and every misfit told."""

import json
import pickle

import cv2
import numpy as np
import pytest

from data_prep.arrays import ArrayReader, FlowReader, find_arrays, open_array
from data_prep.custom import main
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.video import decode_video, write_video
from sptad_jax.errors import UserError

SIZE = 24


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def write_annotations(tmp_path, names, **more):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {name: {"subset": "t", **more, "annotations": [
        {"segment": [0.5, 2], "label": "run"}]} for name in names}}))
    return path


def command(tmp_path, annotations, *more):
    return ["--annotations", str(annotations), "--output", str(tmp_path / "out"), "--frame-size", str(SIZE),
            "--processes", "1", *map(str, more)]


def test_both_streams_from_arrays(tmp_path, capsys):
    """AFSD's two folders to a dataset without a video: every byte as it was, x before y, at 10 frames a second."""
    for name, count in (("a", 40), ("b", 70)):
        for folder, channels in (("rgb/val", 3), ("flow/val", 2)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / folder / f"{name}.npy", noise(count, SIZE, SIZE, channels))
    annotations = write_annotations(tmp_path, ["a", "b"])
    options = command(tmp_path, annotations, "--rgb-from", tmp_path / "rgb", "--flow-from", tmp_path / "flow")
    assert main(options) == 0
    dataset = open_dataset(tmp_path / "out")
    assert [(v.num_frames, v.fps, v.duration_sec) for v in dataset.videos] == [(40, 10, 4.0), (70, 10, 7.0)]
    assert [(v.source_frames, v.source_fps) for v in dataset.videos] == [(40, 10), (70, 10)]
    for i, count in enumerate((40, 70)):
        frames = dataset.read_frames(i, 0, count)
        np.testing.assert_array_equal(frames["rgb"], noise(count, SIZE, SIZE, 3))
        np.testing.assert_array_equal(frames["flow"], noise(count, SIZE, SIZE, 2))
    assert dataset.info["from_arrays"] == ["rgb", "flow"] and dataset.info["flow"]["method"] == "tvl1"
    assert main(options) == 0
    capsys.readouterr()
    assert main(options[:-2]) == 2  # flow computed from the arrays of frames is another dataset
    assert "from_arrays" in capsys.readouterr().err


@pytest.mark.parametrize(("fields", "fits"), [(19, True), (20, True), (21, True), (18, False), (22, False)])
def test_decoded_frames_with_flow_from_arrays(tmp_path, capsys, fields, fits):
    """One field more or less is how tools round; more is flow at another rate, which would train on wrong motion."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "flow").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", noise(20, 32, 32, 3), 10)
    flow = noise(fields, SIZE, SIZE, 2)
    np.save(tmp_path / "flow" / "v_a.npy", flow)
    code = main(command(tmp_path, write_annotations(tmp_path, ["a"]), "--videos", tmp_path / "videos", "--flow-from",
                        tmp_path / "flow"))
    assert code == (0 if fits else 2)
    if not fits:
        assert f"v_a.npy: holds flow for {fields} frames, but the video has 20" in capsys.readouterr().err
        return
    frames = open_dataset(tmp_path / "out").read_frames(0, 0, 20)
    np.testing.assert_array_equal(frames["rgb"], decode_video(tmp_path / "videos" / "a.mp4", 10, SIZE).frames)
    np.testing.assert_array_equal(frames["flow"], np.concatenate([flow, flow[-1:]])[:20])


@pytest.mark.parametrize("layout", ["flow_{axis}_{number:05d}.jpg", "{axis}/{number:05d}.jpg",
                                    "{axis}/flow_{axis}_{number:04d}.png"])
@pytest.mark.parametrize("first", [0, 1])
def test_pictures_of_denseflow(tmp_path, layout, first):
    """Catches x and y swapped, pictures sorted as words (10 before 2), and a start at 1 taken for a missing picture."""
    folder = tmp_path / "flow" / "v_a"
    layout = layout.replace(":05d", "").replace(":04d", "") if first else layout  # without leading zeros too
    for i in range(12):
        for axis, value in (("x", 10 * i), ("y", 255 - 10 * i)):
            path = folder / layout.format(axis=axis, number=first + i)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((SIZE, SIZE), value, np.uint8))
    (folder / "img_00000.jpg").write_bytes(b"")  # denseflow's colour pictures may lie there too
    reader = FlowReader(find_arrays(tmp_path / "flow", "--flow-from", ["a"], with_folders=True)["a"], SIZE)
    assert len(reader) == 12
    fields = reader.read(3, 15)  # three beyond the end
    assert fields.shape == (12, SIZE, SIZE, 2) and fields.dtype == np.uint8
    shown = np.minimum(np.arange(3, 15), 11)
    np.testing.assert_allclose(fields[..., 0].mean(axis=(1, 2)), 10 * shown, atol=1)
    np.testing.assert_allclose(fields[..., 1].mean(axis=(1, 2)), 255 - 10 * shown, atol=1)


def test_pictures_that_cannot_be_used(tmp_path):
    """A gap, a broken picture, another size or an empty folder: told by name, not filled with something."""
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no picture flow_x_00000\.jpg"):
        FlowReader(folder, SIZE)
    for i in range(4):
        for axis in "xy":
            cv2.imwrite(str(folder / f"flow_{axis}_{i:05d}.jpg"), np.full((SIZE, SIZE + (i == 3)), 99, np.uint8))
    with pytest.raises(UserError, match=r"flow_x_00003\.jpg: is 25 x 24"):
        FlowReader(folder, SIZE).read(0, 4)
    (folder / "flow_y_00002.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"flow_y_00002\.jpg: cannot be read"):
        FlowReader(folder, SIZE).read(0, 3)
    (folder / "flow_y_00001.jpg").unlink()
    with pytest.raises(UserError, match="the y picture number 1 is missing"):
        FlowReader(folder, SIZE)


def test_sizes_are_brought_to_the_stored_one(tmp_path):
    """Frames: means of areas. Flow: those too, but in pixels of the new size, so motion shrinks with the picture."""
    rgb, flow = noise(3, 48, 96, 3), noise(3, 48, 96, 2)
    np.save(tmp_path / "rgb.npy", rgb)
    np.save(tmp_path / "flow.npy", flow)
    frames = np.stack(list(ArrayReader(tmp_path / "rgb.npy", 10, SIZE)))
    fields = FlowReader(tmp_path / "flow.npy", SIZE).read(0, 3)
    for t, i, j in np.ndindex(3, SIZE, SIZE):
        np.testing.assert_allclose(frames[t, i, j], rgb[t, 2*i:2*i+2, 4*j:4*j+4].mean(axis=(0, 1)), atol=0.51)
        mean = flow[t, 2*i:2*i+2, 4*j:4*j+4].mean(axis=(0, 1))
        np.testing.assert_allclose(fields[t, i, j], 127.5 + (mean - 127.5) * [1/4, 1/2], atol=0.51)
    np.save(tmp_path / "rest.npy", np.full((1, 48, 48, 2), 128, np.uint8))
    assert (FlowReader(tmp_path / "rest.npy", SIZE).read(0, 1) == 128).all()


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def make_bad_arrays(folder):
    np.save(folder / "float.npy", np.zeros((4, 8, 8, 3), np.float32))
    np.save(folder / "first.npy", np.zeros((4, 3, 8, 8), np.uint8))
    np.save(folder / "two.npy", np.zeros((4, 8, 8, 2), np.uint8))
    np.save(folder / "none.npy", np.zeros((0, 8, 8, 3), np.uint8))
    np.save(folder / "objects.npy", np.array([Bomb()], object), allow_pickle=True)
    (folder / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    with open(folder / "archive.npy", "wb") as file:
        np.savez(file, np.zeros((4, 8, 8, 3), np.uint8))
    np.save(folder / "short.npy", np.zeros((40, 8, 8, 3), np.uint8))
    (folder / "short.npy").write_bytes((folder / "short.npy").read_bytes()[:900])
    (folder / "empty.npy").write_bytes(b"")
    (folder / "text.npy").write_text("frames")
    return sorted(folder.glob("*.npy"))


def test_bad_arrays(tmp_path, monkeypatch):
    """Each is one sentence that names the file; a pickle is never executed."""
    monkeypatch.chdir(tmp_path)
    paths = make_bad_arrays(tmp_path)
    assert len(paths) == 10
    for path in paths:
        with pytest.raises(UserError, match=rf"{path.name}: .*save it anew") as caught:
            open_array(path, 3)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_good_beside_bad(tmp_path, capsys):
    """Bad and missing arrays are listed with exit code 2; with --allow-missing the others make the dataset."""
    for folder in ("rgb", "flow"):
        (tmp_path / folder).mkdir()
    make_bad_arrays(tmp_path / "rgb")
    for name in ("good", "flowless"):
        np.save(tmp_path / "rgb" / f"{name}.npy", noise(30, SIZE, SIZE, 3))
    for name in ("good", "float", "gone"):
        np.save(tmp_path / "flow" / f"{name}.npy", noise(30, SIZE, SIZE, 2))
    annotations = write_annotations(tmp_path, ["float", "good", "gone", "flowless"])
    options = command(tmp_path, annotations, "--rgb-from", tmp_path / "rgb", "--flow-from", tmp_path / "flow")
    assert main(options) == 2
    errors = capsys.readouterr().err
    assert "float.npy: holds float32" in errors and "no gone.npy" in errors and "no flow flowless.npy" in errors
    assert "3 of 4 videos" in errors
    assert main([*options, "--allow-missing"]) == 0
    assert [video.name for video in open_dataset(tmp_path / "out").videos] == ["good"]


def test_rate_of_an_array(tmp_path):
    """ActivityNet's arrays have each their own rate; elsewhere a rate that the stated duration contradicts is told."""
    path = tmp_path / "a.npy"
    np.save(path, noise(60, SIZE, SIZE, 3))
    reader = ArrayReader(path, 10, SIZE, max_frames=768, stated_sec=24)
    assert (reader.fps, reader.duration_sec, reader.source_frames) == (2.5, 24, 60)
    with pytest.raises(UserError, match="more than --max-frames 50"):
        ArrayReader(path, 10, SIZE, max_frames=50, stated_sec=24)
    with pytest.raises(UserError, match="do not state"):
        ArrayReader(path, 10, SIZE, max_frames=768)
    assert ArrayReader(path, 10, SIZE, stated_sec=6.3).duration_sec == 6
    with pytest.raises(UserError, match=r"are 6\.0 s, but the annotations state 24\.0 s"):
        ArrayReader(path, 10, SIZE, stated_sec=24)


def test_large_arrays_stay_on_the_disk(tmp_path):
    """An array larger than memory must open: 123 GB here, a hole on the disk."""
    path = tmp_path / "large.npy"
    header = np.lib.format.open_memmap(path, "w+", np.uint8, (1, 64, 64, 3))
    del header
    content = path.read_bytes()[:128].replace(b"(1, 64, 64, 3)", b"(9999999, 64, 64, 3)")
    content = content.replace(b" " * 6, b"", 1)
    path.write_bytes(content)
    with open(path, "r+b") as file:
        file.truncate(128 + 9_999_999 * 64 * 64 * 3)
    reader = ArrayReader(path, 10, 32)
    assert reader.source_frames == 9_999_999 and next(iter(reader)).shape == (32, 32, 3)


def test_find_arrays(tmp_path):
    """With or without v_, in the folder or one below; an array before a folder, and no folder where none is wanted."""
    for name in ("a.npy", "val/v_b.npy", "val/deep/c.npy", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("a", "test/d", "v_e"):
        (tmp_path / name).mkdir(parents=True)
    names = ["a", "b", "c", "d", "e", "notes"]
    assert find_arrays(tmp_path, "--rgb-from", names) == {"a": tmp_path / "a.npy", "b": tmp_path / "val" / "v_b.npy"}
    assert find_arrays(tmp_path, "--flow-from", names, with_folders=True) == {
        "a": tmp_path / "a.npy", "b": tmp_path / "val" / "v_b.npy", "d": tmp_path / "test" / "d", "e": tmp_path / "v_e"}
    with pytest.raises(UserError, match=r"--flow-from .*nowhere: no such folder"):
        find_arrays(tmp_path / "nowhere", "--flow-from", names)


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--flow-from", ".", "--flow", "none"], "--flow none"),
     (["--flow-from", ".", "--flow-size", "48"], "--flow-size"),
     (["--rgb-from", ".", "--fit", "crop"], "--fit crop"), (["--flow-from", ".", "--fit", "crop"], "--fit crop"),
     (["--videos", ".", "--beam-options", "x"], "--beam-runner"),
     (["--rgb-from", "nowhere"], "--rgb-from nowhere"), ([], "--videos is missing")])
def test_bad_options(tmp_path, capsys, more, words):
    """Options that contradict each other: one sentence before any work."""
    assert main(command(tmp_path, write_annotations(tmp_path, ["a"]), *more)) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1 and not (tmp_path / "out").exists()
