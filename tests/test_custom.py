"""Preparing a folder of videos: good ones whatever the bad ones, going on after a stop, and no half-made dataset."""

import json
import os
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from data_prep import builder
from data_prep.custom import main, prepare
from data_prep.decode import FrameSettings
from data_prep.prepare import find_videos
from sptad_jax.data import streams as streams_module
from sptad_jax.data.annotations import Video
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.streams import read_streams
from sptad_jax.data.video import FrameReader, decode_video, iterate_frames, write_video
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import VIDEOS, write_annotations, write_videos

SETTINGS = FrameSettings(fps=5, frame_size=32, flow="none")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder)
    return folder


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.json"
    write_annotations(path)
    return path


@pytest.fixture
def broken(tmp_path, videos):
    """The same videos, one of them cut short."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in videos.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[: len(data) // 2] if path.stem == "short" else data)
    return folder


def arguments(videos, annotations, output, *more):
    return ["--videos", str(videos), "--annotations", str(annotations), "--output", str(output), "--fps", "5",
            "--frame-size", "32", "--flow", "none", "--processes", "1", *more]


def test_command(videos, annotations, tmp_path, capsys):
    """The whole way: exit code, contents, nothing left lying about, and a second run that does nothing."""
    output = tmp_path / "out"
    assert main(arguments(videos, annotations, output)) == 0
    assert "training: 3 videos, 68 frames, 5 segments" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir()) == ["dataset.json", "ground_truth.json", "records"]
    dataset = open_dataset(output)
    frames = dataset.read_frames(0, 0, dataset.videos[0].num_frames)
    assert set(frames) == {"rgb"}
    np.testing.assert_array_equal(frames["rgb"], decode_video(videos / "long.mp4", 5, 32).frames)
    before = (output / "dataset.json").stat().st_mtime_ns
    assert main(arguments(videos, annotations, output)) == 0
    assert "finished" in capsys.readouterr().out
    assert (output / "dataset.json").stat().st_mtime_ns == before


def test_central_square(annotations, tmp_path, capsys):
    """--fit crop from the command to detection: stored frames, flow, what `sptad detect` decodes by the dataset's
    source, and a folder from before the option, which holds whole pictures."""
    rng = np.random.default_rng(0)
    wide = tmp_path / "wide"
    wide.mkdir()
    for name, (_, count, _) in VIDEOS.items():
        grey = cv2.resize(rng.integers(0, 256, (6, 8), np.uint8), (96, 48))
        picture = np.repeat(grey[..., None], 3, axis=-1)
        write_video(wide / f"{name}.mp4", [np.roll(picture, 2 * t, axis=1) for t in range(count)], 10, crf=5)
    command = arguments(wide, annotations, tmp_path / "out", "--fit", "crop", "--flow", "dis", "--flow-size", "48")
    assert main(command) == 0
    dataset = open_dataset(tmp_path / "out")
    index = next(i for i, video in enumerate(dataset.videos) if video.name == "long")
    frames = dataset.read_frames(index, 0, dataset.videos[index].num_frames)
    pictures = [picture for _, _, picture in iterate_frames(wide / "long.mp4")][::2]
    squares = np.stack([cv2.resize(picture[:, 24:72], (32, 32), interpolation=cv2.INTER_AREA) for picture in pictures])
    np.testing.assert_allclose(frames["rgb"], squares, atol=3)
    moved = np.median(frames["flow"][:-1, 8:-8, 8:-8, 0] / 255 * 40 - 20)
    assert moved == pytest.approx(4 * 32 / 48, abs=0.3), "2 pixels a frame, every other frame taken; 1.3 if squeezed"
    again, *_ = read_streams(wide / "long.mp4", dataset.source)
    for name in ("rgb", "flow"):
        np.testing.assert_array_equal(again[name], frames[name])

    assert main(command) == 0 and "finished" in capsys.readouterr().out
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    del info["fit"]
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(info))
    assert main(command) == 2
    assert "made with fit stretch, not crop" in capsys.readouterr().err
    assert main([word for word in command if word not in ("--fit", "crop")]) == 0
    old, *_ = read_streams(wide / "long.mp4", open_dataset(tmp_path / "out").source | {"flow": None})
    np.testing.assert_array_equal(old["rgb"], decode_video(wide / "long.mp4", 5, 32).frames)


def test_square_of_motion(annotations, tmp_path):
    """--fit motion from the command to detection: a square that `sptad detect` does not find again, flow of another
    part of the picture than the frames, or the central square in its place."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, (_, count, _) in VIDEOS.items():
        pictures = np.full((count, 96, 128, 3), 90, np.uint8)
        for t, picture in enumerate(pictures):
            picture[10 + 3 * (t % 8):26 + 3 * (t % 8), 8:24] = 220  # far from the middle
        write_video(videos / f"{name}.mp4", list(pictures), 10, crf=5)
    assert main(arguments(videos, annotations, tmp_path / "out", "--fit", "motion", "--flow", "dis")) == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.source["fit"] == "motion"
    index = next(i for i, video in enumerate(dataset.videos) if video.name == "long")
    frames = dataset.read_frames(index, 0, dataset.videos[index].num_frames)
    bright = (frames["rgb"][..., 0] > 160).mean(axis=(1, 2))
    assert (bright > 16 * 16 / (0.8 * 96) ** 2).all(), "enlarged, and never cut off; 0.028 by the central square"
    moves = np.abs(frames["flow"][:-1].astype(int) - 128).max(axis=-1) > 8
    near = np.stack([cv2.dilate(np.uint8(picture), np.ones((9, 9))) for picture in frames["rgb"][:-1, ..., 0] > 160])
    assert moves.any() and near[moves].mean() > 0.8
    again, *_ = read_streams(videos / "long.mp4", dataset.source)
    for name in ("rgb", "flow"):
        np.testing.assert_array_equal(again[name], frames[name])


def test_processes_without_tensorflow(videos, annotations, tmp_path):
    """Several processes, as a real command, give the same bytes as one here, and TensorFlow is never imported."""
    code = ("import sys; from data_prep.custom import main; code = main(sys.argv[1:]); "
            "sys.exit(code or 'tensorflow' in sys.modules)")
    # a spawned process imports the main module again, so the command must be guarded as the real one is
    script = tmp_path / "run.py"
    script.write_text("if __name__ == '__main__':\n    " + code)
    output = tmp_path / "two" / "out"
    done = subprocess.run([sys.executable, str(script), *arguments(videos, annotations, output, "--processes", "2")],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}, timeout=120)
    assert done.returncode == 0, done.stderr
    here = tmp_path / "one" / "out"
    prepare(videos, annotations, here, SETTINGS)
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    for file in files:
        assert (here / file).read_bytes() == (output / file).read_bytes(), file


def test_broken_video(broken, annotations, tmp_path, capsys):
    """One broken video: exit code 2 and its name, no dataset; with --allow-missing all others, and it is noted."""
    output = tmp_path / "out"
    assert main(arguments(broken, annotations, output)) == 2
    errors = capsys.readouterr().err
    assert "short.mp4" in errors and "1 of 4 videos" in errors and "Traceback" not in errors
    with pytest.raises(UserError, match="did not finish"):
        open_dataset(output)
    assert main(arguments(broken, annotations, output, "--allow-missing")) == 0
    dataset = open_dataset(output)
    assert [video.name for video in dataset.videos] == ["long", "middle", "unseen"]
    assert "short" not in json.loads(dataset.ground_truth_path.read_text())["database"]
    assert any("short.mp4" in sentence for sentence in dataset.info["exceptions"])
    np.testing.assert_array_equal(dataset.read_frames(1, 0, 20)["rgb"],
                                  decode_video(broken / "middle.mp4", 5, 32).frames)


def test_goes_on_where_it_stopped(broken, videos, annotations, tmp_path, monkeypatch):
    """Days of optical flow must not be done again: after a repair only the repaired video is decoded."""
    output = tmp_path / "out"
    with pytest.raises(UserError, match="will not be decoded again"):
        prepare(broken, annotations, output, SETTINGS)
    (broken / "short.mp4").write_bytes((videos / "short.mp4").read_bytes())
    decoded = []

    def watch(path, *args, **options):
        decoded.append(path.name)
        return FrameReader(path, *args, **options)

    monkeypatch.setattr(streams_module, "FrameReader", watch)
    prepare(broken, annotations, output, SETTINGS)
    assert decoded == ["short.mp4"]
    assert len(open_dataset(output).videos) == 4


def test_stop_while_records_are_written(videos, annotations, tmp_path, monkeypatch):
    """A run that ends before dataset.json must be completed by the next, over whatever records it left."""
    output = tmp_path / "out"

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(videos, annotations, output, SETTINGS)
    assert (output / "records").is_dir()
    prepare(videos, annotations, output, SETTINGS)
    assert open_dataset(output).read_frames(3, 0, 5)["rgb"].shape == (5, 32, 32, 3)


def test_other_settings_are_refused(videos, annotations, tmp_path):
    """A finished dataset made otherwise must not be taken for the one asked for."""
    output = tmp_path / "out"
    prepare(videos, annotations, output, SETTINGS)
    with pytest.raises(UserError, match="fps 5"):
        prepare(videos, annotations, output, FrameSettings(fps=10, frame_size=32, flow="none"))
    with pytest.raises(UserError, match="other annotations"):
        prepare(videos, annotations, output, SETTINGS, subsets=("training",))


def test_subsets_and_classes(videos, annotations, tmp_path):
    """--subsets takes some videos; --classes fixes the order and drops other labels, saying so."""
    notes = prepare(videos, annotations, tmp_path / "out", SETTINGS, subsets=("training",), classes=("run",))
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == ("run",) and list(dataset.info["subsets"]) == ["training"]
    assert len(notes) == 3 and all("'jump'" in note for note in notes)
    with pytest.raises(UserError, match="'validation'"):
        prepare(videos, annotations, tmp_path / "other", SETTINGS, subsets=("validation",))


def test_segments_follow_the_decoded_length(videos, annotations, tmp_path):
    """A duration in the JSON longer than the file: segments are cut at the file's end, not trained beyond it."""
    content = json.loads(annotations.read_text())
    content["database"]["short"].update(duration=60, annotations=[
        {"segment": [1, 30], "label": "run"}, {"segment": [40, 50], "label": "run"}])
    annotations.write_text(json.dumps(content))
    notes = prepare(videos, annotations, tmp_path / "out", SETTINGS)
    video = open_dataset(tmp_path / "out").videos[1]
    assert video.duration_sec == pytest.approx(2.0) and len(notes) == 2
    assert [row.segment_sec for row in video.annotations] == [(1.0, pytest.approx(2.0))]


def test_max_frames(videos, annotations, tmp_path):
    """ActivityNet's way: each video its own rate, kept with the video, since seconds become frames by it."""
    prepare(videos, annotations, tmp_path / "out", FrameSettings(max_frames=30, frame_size=32, flow="none"))
    videos_of = {video.name: video for video in open_dataset(tmp_path / "out").videos}
    assert {name: video.num_frames for name, video in videos_of.items()} == {
        "long": 30, "short": 20, "middle": 30, "unseen": 30}
    assert videos_of["long"].fps == pytest.approx(4) and videos_of["short"].fps == pytest.approx(10)


def test_find_videos_on_another_disk(tmp_path):
    """Folders that are links, as to where there is room; one that leads back up must not be followed for ever, and a
    second name of a folder must not take the place of its own."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "a.MTS").write_text("")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "videos" / "own").mkdir()
    (tmp_path / "videos" / "own" / "b.mp4").write_text("")
    (tmp_path / "videos" / "alias").symlink_to("own")
    names = ("a", "train/deep/a", "gone", "own/b")
    found = find_videos(tmp_path / "videos", [Video(name, "s", 0.0, []) for name in names])
    there = tmp_path / "videos" / "train" / "deep" / "a.MTS"
    assert found == {"a": there, "train/deep/a": there, "gone": None,
                     "own/b": tmp_path / "videos" / "own" / "b.mp4"}


def test_find_videos(tmp_path):
    """Prefix, sub-folders, endings in capitals, an accent beside its letter (macOS), and a missing one."""
    for name in ("Ka\u0308se.mp4", "v_abc.MP4", "deep/er/xyz.webm", "both.avi", "both.mp4", "notes.txt",
                 "dotted.name.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ["K\u00e4se", "abc", "xyz", "deep/er/xyz", "both", "notes", "dotted.name"]
    found = find_videos(tmp_path, [Video(name, "s", 0.0, []) for name in names])
    assert {name: path and path.name for name, path in found.items()} == {
        "K\u00e4se": "Ka\u0308se.mp4",
        "abc": "v_abc.MP4", "xyz": "xyz.webm", "deep/er/xyz": "xyz.webm", "both": "both.mp4", "notes": None,
        "dotted.name": "dotted.name.mkv"}


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--fps", "0"], "--fps"), (["--videos", "nowhere"], "--videos nowhere"), (["--subsets", "x"], "--subsets"),
     (["--annotations", "none.json"], "none.json"), (["--classes", "run", "run"], "twice")])
def test_bad_arguments(videos, annotations, tmp_path, capsys, more, words):
    """One plain sentence on standard error, exit code 2."""
    assert main(arguments(videos, annotations, tmp_path / "out", *more)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and words in errors and errors.count("\n") == 1


def test_subset_name(videos, annotations, tmp_path):
    """TFDS would fail on it after all decoding is done: told before."""
    annotations.write_text(annotations.read_text().replace("testing", "my test"))
    with pytest.raises(UserError, match="'my test'"):
        prepare(videos, annotations, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_no_video_at_all(annotations, tmp_path, capsys):
    """Every video missing, even with --allow-missing: a sentence, no empty dataset."""
    (tmp_path / "empty").mkdir()
    assert main(arguments(tmp_path / "empty", annotations, tmp_path / "out", "--allow-missing")) == 2
    assert "not one usable video" in capsys.readouterr().err


def test_real_videos(shared, tmp_path):
    """Real, dirty recordings with flow: frames and flow belong together."""
    folder = shared / "videos" / "gmdcsa24" / "subject_1" / "Fall"
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {"13": {"subset": "test", "annotations": [
        {"segment": [0.5, 99], "label": "fall"}]}}}))
    notes = prepare(folder, path, tmp_path / "out", FrameSettings(fps=10, frame_size=48, flow="dis"))
    dataset = open_dataset(tmp_path / "out")
    assert dataset.videos[0].num_frames == 44 and len(notes) == 1
    assert dataset.read_frames(0, 30, 44)["flow"].shape == (14, 48, 48, 2)


def write_odd_videos(folder):
    """Files as people have them. Grey levels tell the frames of those that can be read."""
    grey = [np.full((32, 48, 3), level, np.uint8) for level in range(40, 220, 6)]  # 30 frames
    write_video(folder / "no audio.mp4", grey, 10, crf=0)
    write_video(folder / "съёмка 日本 [1].mp4", grey[::-1], 10, crf=0)
    write_video(folder / "single.mp4", grey[:1], 10, crf=0)
    turned = np.zeros((32, 48, 3), np.uint8)
    turned[:16, :24] = 255
    write_video(folder / "turned.mp4", [turned] * 10, 10)
    data = bytearray((folder / "turned.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    for i, value in enumerate([0, 0x00010000, 0, 0xFFFF0000, 0]):  # a quarter turn clockwise
        data[matrix + 4 * i:matrix + 4 * i + 4] = value.to_bytes(4, "big")
    (folder / "turned.mp4").write_bytes(data)
    with av.open(str(folder / "variable.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image, pts in zip(grey, [0, 1, 11, 12, 32]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("I am no video.\n" * 100)
    whole = (folder / "no audio.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[:len(whole) * 2 // 3])


def test_odd_files(tmp_path, capsys):
    """Whatever lies in a folder: what can be read is read right, the rest is named in a sentence, nothing stops it."""
    folder = tmp_path / "videos of mine"
    folder.mkdir()
    write_odd_videos(folder)
    names = ["no audio", "съёмка 日本 [1]", "single", "turned", "variable", "empty", "text", "truncated"]
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps({"database": {name: {"subset": "t", "annotations": [
        {"segment": [0, 99], "label": "sing"}]} for name in names}}), encoding="utf-8")
    output = tmp_path / "out"
    options = arguments(folder, annotations, output, "--fps", "10")
    assert main(options) == 2
    errors = capsys.readouterr().err
    assert "3 of 8 videos" in errors and "Traceback" not in errors
    for name in ("empty.mp4", "text.mp4", "truncated.mp4"):
        assert sum(f"{name}: " in line for line in errors.splitlines()) == 1
    assert main([*options, "--allow-missing"]) == 0
    dataset = open_dataset(output)
    frames = {video.name: dataset.read_frames(i, 0, video.num_frames)["rgb"] for i, video in enumerate(dataset.videos)}
    levels = {name: stream.mean(axis=(1, 2, 3)) for name, stream in frames.items()}
    assert list(frames) == names[:5]
    np.testing.assert_allclose(levels["no audio"], np.arange(40, 220, 6), atol=1.1)
    np.testing.assert_allclose(levels["съёмка 日本 [1]"], np.arange(40, 220, 6)[::-1], atol=1.1)
    np.testing.assert_allclose(levels["single"], [40], atol=1.1)
    np.testing.assert_allclose(levels["variable"][:32], [40] + [46] * 10 + [52] + [58] * 20, atol=1.1)
    assert frames["turned"][5, 8, 24].min() > 200 and frames["turned"][5, 8, 8].max() < 50
    ends = {video.name: video.annotations[0].segment_sec[1] for video in dataset.videos}
    assert ends["single"] == pytest.approx(0.1) and ends["no audio"] == pytest.approx(3.0)
    assert {v.name: v.source_frames for v in dataset.videos} == dict(zip(names, [30, 30, 1, 10, 5]))


def test_real_video_is_an_activitynet_example(shared, tmp_path):
    """Frames, rate, times and label of a real file against OpenCV's own reader and the published ground truth."""
    truth = json.loads((shared / "activitynet13" / "anet_anno_action.json").read_text())["v_GGSY1Qvo990"]
    (tmp_path / "a.json").write_text(json.dumps({"database": {"GGSY1Qvo990": {
        "subset": "validation", "duration": truth["duration_second"], "annotations": truth["annotations"]}}}))
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "v_GGSY1Qvo990.mp4").symlink_to(shared / "videos" / "v_GGSY1Qvo990.mp4")
    assert main(["--videos", str(folder), "--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "out"),
                 "--max-frames", "60", "--frame-size", "32", "--flow", "none", "--processes", "1"]) == 0
    dataset = open_dataset(tmp_path / "out")
    (video,) = dataset.videos
    capture = cv2.VideoCapture(str(shared / "videos" / "v_GGSY1Qvo990.mp4"))
    times, pictures = [], []
    while True:
        good, picture = capture.read()
        if not good:
            break
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        pictures.append(cv2.resize(picture[..., ::-1], (32, 32), interpolation=cv2.INTER_AREA))
    assert video.source_frames == len(pictures) == 355
    assert video.source_fps == pytest.approx(capture.get(cv2.CAP_PROP_FPS), rel=2e-3)
    assert video.num_frames == 60 and video.num_frames / video.fps == pytest.approx(video.duration_sec)
    assert video.duration_sec == pytest.approx(truth["duration_second"], abs=0.1)
    starts = np.array(times) - times[0]
    frames = dataset.read_frames(0, 0, 60)["rgb"].astype(int)
    for i in (0, 1, 17, 30, 44, 59):
        shown = np.searchsorted(starts, i / video.fps + 1e-3, side="right") - 1
        gaps = [np.abs(frames[i] - pictures[j]).mean() for j in range(len(pictures))]
        # OpenCV rounds colours down, by 1.3 on average; test_video compares with the exact ones
        assert gaps[shown] < 2.5 and gaps[shown] == min(gaps), (i, shown, int(np.argmin(gaps)))
    assert [row.label for row in video.annotations] == [row["label"] for row in truth["annotations"]]
    for row, expected in zip(video.annotations, truth["annotations"]):
        np.testing.assert_allclose(row.segment_sec, np.minimum(expected["segment"], video.duration_sec), atol=1e-6)


def test_odd_size_is_no_matter(tmp_path):
    """A single-frame video with an odd shape still makes a dataset."""
    write_video(tmp_path / "one.mp4", [np.full((50, 98, 3), 99, np.uint8)], 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {"one": {"subset": "t", "annotations": []}}}))
    prepare(tmp_path, path, tmp_path / "out", FrameSettings(fps=10, frame_size=33, flow="dis"))
    frames = open_dataset(tmp_path / "out").read_frames(0, 0, 1)
    assert frames["rgb"].shape == (1, 33, 33, 3) and (frames["flow"] == 128).all()
