"""data_prep.activitynet13: the real annotation with its known counts, and every malformation in made-up files."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from data_prep.activitynet13 import count, load_activitynet13, main
from sptad_jax.config import DataConfig
from sptad_jax.data.annotations import find_classes
from sptad_jax.data.datasets import make_video_targets, open_dataset
from sptad_jax.data.video import decode_video
from sptad_jax.data.windows import index_windows
from sptad_jax.errors import UserError


@pytest.fixture(scope="module")
def real(shared: pathlib.Path) -> pathlib.Path:
    return shared / "activitynet13"


# videos, instances, rows of no length, repeated rows, videos left with an action
@pytest.mark.parametrize(("subset", "videos", "instances", "empty", "repeated", "windows"), [
    ("training", 9649, 14859, 9, 28, 9641), ("validation", 4728, 7293, 3, 17, 4726)])
def test_real_annotation(real, subset, videos, instances, empty, repeated, windows):
    """Videos or segments lost on the way, or an unusable segment that is counted as a target, or not told."""
    result = count(real, subset)
    assert (result["videos"], result["instances"], result["classes"]) == (videos, instances, 200)
    assert sum("ends before it starts or when it starts" in s for s in result["exceptions"]) == empty
    assert sum("repeats an earlier one" in s for s in result["exceptions"]) == repeated
    assert result["kept_targets"] == instances - empty - repeated
    assert result["windows"] == windows  # one a video, where it has an action


def test_every_video_is_one_window(real):
    """A video that is cut in two, or one without an action that is lost among the test windows."""
    assert count(real, "validation", rule="all")["windows"] == 4728


def test_windows_by_a_slow_count(real):
    """The number of kept windows again, straight from the JSON: videos with at least one segment of a length."""
    content = json.loads((real / "anet_anno_action.json").read_text())
    lines = (real / "video_info_new.csv").read_text().splitlines()[1:]
    subsets = {line.split(",")[0]: line.split(",")[5] for line in lines}
    usable = {name for name, entry in content.items()
              if any(row["segment"][1] > row["segment"][0] for row in entry["annotations"])}
    result = count(real, "training")
    assert result["windows"] == sum(subsets[name] == "training" for name in usable)
    assert result["most_targets"] == 23


def test_classes_of_the_real_annotation(real):
    """A class order other than action_name.txt's gives every label another index; the .csv says the same."""
    names = (real / "action_name.txt").read_text().split("\n")
    source = load_activitynet13(real)
    assert list(source.classes) == [name for name in names if name] and len(source.classes) == 200
    assert set(source.classes) == set(find_classes(source.videos)) and source.classes != find_classes(source.videos)
    assert load_activitynet13(real, ["testing"], class_names=real / "action_name.csv").classes == source.classes


def test_the_video_that_is_at_hand(real):
    """Names lose BSN's v_ once, as in the official file; times, rate and label are those of the file."""
    source = load_activitynet13(real, ["validation"])
    (video,) = [video for video in source.videos if video.name == "GGSY1Qvo990"]
    entry = json.loads((real / "anet_anno_action.json").read_text())["v_GGSY1Qvo990"]
    assert [(list(a.segment_sec), a.label) for a in video.annotations] == [
        (row["segment"], row["label"]) for row in entry["annotations"]]
    assert video.duration_sec == entry["duration_second"]
    assert source.source_fps[video.name] == entry["duration_frame"] / entry["duration_second"]


def entry(subset, rows, duration=100.0):
    return {"subset": subset, "duration": duration, "resolution": "320x240", "url": "https://example.org",
            "annotations": [{"segment": segment, "label": label} for segment, label in rows]}


def write_official(folder, database):
    path = folder / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database}))
    return path


def test_official_file(tmp_path, capsys):
    """The official JSON: reversed, empty, late and repeated segments told one by one, the others counted."""
    path = write_official(tmp_path, {
        "v_startsLikeThis": entry("training", [([10, 20], "B"), ([30, 25], "B"), ([5, 5], "A")]),
        "-dash": entry("training", [([10, 20], "A"), ([10, 20], "A"), ([90, 120], "B"), ([100, 101], "B")]),
        "other": entry("validation", [([1, 2], "C")]), "unseen": entry("testing", [])})
    assert main(["count", "--annotations", str(path), "--subset", "training"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["videos"], result["instances"], result["kept_targets"], result["windows"]) == (2, 7, 3, 2)
    assert result["frames"] == 2 * 768 and len(result["exceptions"]) == 5
    for words in ("[30, 25] that ends", "[5, 5] that ends", "repeats", "[90, 120] ends after", "[100, 101] starts"):
        assert sum(words in s for s in result["exceptions"]) == 1, words
    source = load_activitynet13(tmp_path)  # the folder does as well
    assert [v.name for v in source.videos] == ["v_startsLikeThis", "-dash", "other", "unseen"]
    assert source.classes == ("A", "B", "C")


def test_class_file_gives_the_order(tmp_path):
    """A file beside the JSON, or named, gives the order; a label that it lacks is told."""
    write_official(tmp_path, {"x": entry("training", [([1, 2], "B"), ([3, 4], "A")])})
    (tmp_path / "action_name.txt").write_text("B\nA\n")
    assert load_activitynet13(tmp_path, ["training"]).classes == ("B", "A")
    (tmp_path / "mine.csv").write_text("action\nB\n")
    source = load_activitynet13(tmp_path, ["training"], class_names=tmp_path / "mine.csv")
    assert source.classes == ("B",) and [a.label for a in source.videos[0].annotations] == ["B"]
    assert len(source.exceptions) == 1 and "'A'" in source.exceptions[0]


def write_bsn(folder):
    content = {"v_v_a": {"duration_second": 10.0, "duration_frame": 100, "feature_frame": 96,
                         "annotations": [{"segment": [1, 4], "label": "A"}]},
               "v_b": {"duration_second": 100.0, "duration_frame": 3000, "feature_frame": 2992,
                       "annotations": [{"segment": [10, 40], "label": "B"}]},
               "v_c": {"duration_second": 5.0, "duration_frame": 100, "annotations": []}, "v_d": 3, "v_e\ud83d": {}}
    (folder / "anet_anno_action.json").write_text(json.dumps(content))
    (folder / "video_info_new.csv").write_text(
        "video,numFrame,seconds,fps,rfps,subset,featureFrame\nv_v_a,100,10,10,10,training,96\n"
        "v_b,3000,100,30,30,training,2992\nv_d,3000,100,30,30,training,2992\n")


def test_bsn_files(tmp_path):
    """A slow video keeps its own rate, a video that no subset claims is told, also where its name is no text, and v_
    goes once."""
    write_bsn(tmp_path)
    source = load_activitynet13(tmp_path, ["training"])
    assert [v.name for v in source.videos] == ["v_a", "b"]
    assert sum("video_info_new.csv" in s and bool(s.encode()) for s in source.exceptions) == 3
    result = count(tmp_path, "training")
    assert (result["frames"], result["windows"], result["kept_targets"]) == (100 + 768, 2, 2)
    result = count(tmp_path, "training", rule="all", length=256, stride=128)
    assert result["windows"] == 1 + 5


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere.json"], "nowhere.json: no such file"),
    (["."], "holds neither activity_net.v1-3.min.json nor anet_anno_action.json"),
    (["text.json"], "cannot be read as JSON"),
    (["list.json"], "top level must be an object"),
    (["number.json"], "'database' must map"),
    (["alone.json"], "video_info_new.csv"),
    (["good.json"], "no video of the subset 'validation'"),
    (["good.json", "--class-names", "none.txt"], "none.txt: no such file"),
    (["good.json", "--class-names", "twice.txt"], "twice.txt: must name each class once"),
])
def test_unusable_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    """A traceback, an empty answer with exit code 0, or output on stdout beside the error."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"text.json": "{", "list.json": "[]", "number.json": '{"database": 3}',
                       "alone.json": '{"v_a": {}}', "twice.txt": "A\nA\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "good.json").write_text(json.dumps({"database": {"a": entry("training", [([1, 2], "A")])}}))
    assert main(["count", "--subset", "validation", "--annotations", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_table_without_subsets(tmp_path):
    """Another table of the same name."""
    write_bsn(tmp_path)
    (tmp_path / "video_info_new.csv").write_text("video,frames\nv_b,3\n")
    with pytest.raises(UserError, match="'video' and 'subset'"):
        load_activitynet13(tmp_path)


def test_build_with_the_real_video(shared, real, tmp_path, capsys):
    """v_GGSY1Qvo990 with its real annotation: frames, rate, times and label must agree, and the other 4,727 be told."""
    videos = tmp_path / "videos"
    videos.mkdir()
    path = shutil.copy(shared / "videos" / "v_GGSY1Qvo990.mp4", videos)
    arguments = ["build", "--videos", str(videos), "--annotations", str(real), "--output", str(tmp_path / "out"),
                 "--subsets", "validation", "--frame-size", "32", "--flow", "none", "--processes", "1"]
    assert main(arguments) == 2
    assert "4727 of 4728 videos" in capsys.readouterr().err
    assert main([*arguments, "--allow-missing"]) == 0
    assert "validation: 1 videos" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out")
    assert dataset.info["max_frames"] == 768 and dataset.info["name"] == "ActivityNet-1.3"
    assert len(dataset.classes) == 200 and len(dataset.info["exceptions"]) >= 4727
    (video,) = dataset.videos
    decoded = decode_video(path, 10, 32, max_frames=768)
    assert (video.name, video.subset, video.num_frames) == ("GGSY1Qvo990", "validation", len(decoded.frames))
    assert video.num_frames <= 768 and video.num_frames / video.fps == pytest.approx(decoded.duration_sec, abs=0.1)
    np.testing.assert_array_equal(dataset.read_frames(0, 0, video.num_frames)["rgb"], decoded.frames)
    rows = json.loads((real / "anet_anno_action.json").read_text())["v_GGSY1Qvo990"]["annotations"]
    assert [a.label for a in video.annotations] == [row["label"] for row in rows]
    assert [a.segment_sec for a in video.annotations] == [
        (row["segment"][0], pytest.approx(min(row["segment"][1], decoded.duration_sec), abs=0.05)) for row in rows]
    (target,) = make_video_targets(dataset, "validation")
    assert target.labels.tolist() == [dataset.classes.index(row["label"]) for row in rows]
    assert target.segments_frame[:, 0].tolist() == [row["segment"][0] * video.fps for row in rows]
    index = index_windows([target], DataConfig(num_frames=768), 200, 768)
    assert len(index) == 1 and int(index.num_frames[0]) == video.num_frames
