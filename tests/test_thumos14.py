"""data_prep.thumos14: the real annotation with its known counts, and every malformation in made-up files."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_prep import thumos14
from data_prep.thumos14 import count, load_thumos14, main
from data_prep.thumos14_files import CLASSES
from sptad_jax.data.annotations import Annotation, load_annotations
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.video import decode_video, write_video
from sptad_jax.errors import UserError
from sptad_jax.evaluation.thumos_official import TEST_SETS

HEADING = "video,type,type_idx,start,end,startFrame,endFrame\n"
LENGTHS = "video,fps,sample_fps,count,sample_count\n"


@pytest.fixture(scope="module")
def real(shared: pathlib.Path) -> pathlib.Path:
    return shared / "thumos14"


@pytest.mark.parametrize(("times", "rule", "windows", "targets", "most"), [
    ("frames", "afsd", 7842, 22416, 26),
    ("seconds", "afsd", 7877, 22559, 26),
    ("frames", "paper", 8779, 23453, 26),
    ("seconds", "paper", 8770, 23475, 24),
    ("seconds", "all", 12530, 23475, 24),
])
def test_training_windows_of_the_real_annotation(real, times, rule, windows, targets, most):
    """Another number of windows would be another epoch: figures counted independently from the public files."""
    result = count(real, "validation", rule=rule, times=times)
    assert (result["videos"], result["instances"]) == (200, 3007)
    assert (result["windows"], result["kept_targets"], result["most_targets"]) == (windows, targets, most)
    assert result["frames"] == 417_746 and result["hours"] == pytest.approx(11.6, abs=0.01)


@pytest.mark.parametrize(("length", "windows"), [(224, 3992), (256, 3485), (288, 3077), (320, 2765)])
def test_test_windows_of_the_real_annotation(real, length, windows):
    """Table 8's lengths at half overlap: a lost tail window or a video too many changes the number."""
    result = count(real, "test", rule="all", length=length, stride=length // 2)
    assert (result["videos"], result["instances"], result["windows"]) == (213, 3358, windows)
    assert result["frames"] == 459_253


@pytest.mark.parametrize("source", ["official", "afsd"])
def test_both_sources_say_the_same(real, source):
    """Official text files and AFSD's tables must give the same videos, Ambiguous included."""
    whole = load_thumos14(real)
    alone = load_thumos14(real / source, lengths=real / "afsd")
    assert {v.name: (v.subset, sorted(v.annotations, key=repr), sorted(v.ambiguous)) for v in alone.videos} == {
        v.name: (v.subset, sorted(v.annotations, key=repr), sorted(v.ambiguous)) for v in whole.videos}
    assert sum(len(v.ambiguous) for v in whole.videos if v.subset == "validation") == 3096 - 3007
    assert sum(len(v.ambiguous) for v in whole.videos if v.subset == "test") == 3457 - 3358
    assert alone.classes == whole.classes == CLASSES
    assert count(real / source, "validation", lengths=real / "afsd")["windows"] == 8770


def test_exceptions_of_the_real_annotation(real):
    """An exception of the published files that goes untold, or one that is told but is not there."""
    validation, test = (count(real, subset)["exceptions"] for subset in ("validation", "test"))

    def named(sentences: list[str], words: str) -> dict[str, int]:
        names = [sentence.split("'")[1] for sentence in sentences if words in sentence]
        return {name[-7:]: names.count(name) for name in names}

    late = "starts after the video's end"
    assert named(validation, late) == {"0000364": 2, "0000856": 2}
    assert named(test, late) == {"0000270": 22, "0000814": 3, "0001081": 1}
    assert set(named(validation, "differ by")) == {
        "0000209", "0000314", "0000363", "0000369", "0000666", "0000902", "0000903"}
    assert set(named(test, "differ by")) == {
        "0000379", "0000716", "0000793", "0001164", "0001235", "0001369", "0001495"}
    assert any("0000666" in s and "1301.1 sampled" in s for s in validation)
    assert [s for s in validation + test if "CliffDiving" in s] == [
        "validation: 143 of 143 CliffDiving instances are annotated as Diving too, at the same times; both are kept.",
        "test: 217 of 217 CliffDiving instances are annotated as Diving too, at the same times; both are kept."]
    assert named(test, "Ambiguous segments only") == named(test, "length is not known") == {"0001292": 1}
    assert (len(validation), len(test)) == (4 + 7 + 1, 26 + 7 + 1 + 2)


@pytest.mark.parametrize(("preset", "instances"), [(213, 3358), (212, 3358), (211, 3329), (210, 3311)])
def test_presets(real, preset, instances):
    """A preset that leaves out another video than the ground truth it is named after."""
    result = count(real, "test", rule="all", preset=preset)
    assert (result["videos"], result["instances"]) == (preset, instances)
    assert any(f"--preset {preset}" in s for s in result["exceptions"]) == (preset != 213)
    assert len(load_thumos14(real, ["validation"], preset=preset).videos) == 200


def test_preset_210_is_afsds_ground_truth(real):
    """Table 1 is scored on AFSD's file: its videos and their numbers of instances, each one."""
    listed, _ = load_annotations(real / "afsd" / "thumos_gt.json")
    expected = {v.name: len(v.annotations) for v in listed if v.subset.lower() == "test"}
    assert {v.name: len(v.annotations) for v in load_thumos14(real, ["test"], preset=210).videos} == expected


def test_detclasslist_is_the_built_in_order(real):
    """Another order of classes would give every label another index."""
    lines = (real / "official" / "annotation_test" / "detclasslist.txt").read_text()
    assert tuple(line.split()[1] for line in lines.splitlines()) == CLASSES


def make_folder(root: pathlib.Path) -> pathlib.Path:
    """Both sources for three validation videos of 300, 300 and 270 source frames at 30, 30 and 25 fps."""
    texts, tables = root / "official" / "annotation_val", root / "afsd"
    texts.mkdir(parents=True)
    tables.mkdir()
    (texts / "detclasslist.txt").write_text("1 Diving\n2 CliffDiving\n3 Billiards\n")
    (texts / "Diving_val.txt").write_text("v_b  1.0 2.0\nv_a  3.0 4.5\n")
    (texts / "CliffDiving_val.txt").write_text("v_a  3.0 4.5\nv_a  6 7\n")
    (texts / "Billiards_val.txt").write_text("")
    (texts / "Ambiguous_val.txt").write_text("v_c  0.5 2.5\nv_b  5 6\n")
    rows = ["v_b,Diving,26,1.0,2.0,30,60", "v_a,Diving,26,3.0,4.5,90,135", "v_a,CliffDiving,22,3.0,4.5,90,135",
            "v_a,CliffDiving,22,6,7,180,210", "v_c,Ambiguous,0,0.5,2.5,13,63", "v_b,Ambiguous,0,5,6,150,180"]
    (tables / "val_Annotation.csv").write_text(HEADING + "\n".join(rows) + "\n")
    (tables / "val_video_info.csv").write_text(
        LENGTHS + "v_a,30.0,10.0,300.0,100\nv_b,30.0,10.0,300.0,99\nv_c,25.0,10.0,270.0,108\n")
    return root


def by_name(source):
    return {v.name: ([(a.segment_sec, a.label) for a in v.annotations], v.ambiguous) for v in source.videos}


@pytest.mark.parametrize("below", ["", "one", "one/two"])
def test_made_up_folder(tmp_path, below):
    """Ambiguous as a target, a doubled label lost, a folder one or two down not found, and classes in another order."""
    make_folder(tmp_path / below)
    folder = tmp_path / below if below == "one/two" else tmp_path
    source = load_thumos14(folder if below != "one" else tmp_path / "one", ["validation"])
    assert by_name(source) == {
        "v_a": ([((3.0, 4.5), "CliffDiving"), ((6.0, 7.0), "CliffDiving"), ((3.0, 4.5), "Diving")], ()),
        "v_b": ([((1.0, 2.0), "Diving")], ((5.0, 6.0),)),
        "v_c": ([], ((0.5, 2.5),))}
    assert source.classes == ("Diving", "CliffDiving", "Billiards")
    assert {v.subset for v in source.videos} == {"validation"}
    assert len(source.exceptions) == 2
    assert "'v_c': has Ambiguous segments only" in source.exceptions[0]
    assert "1 of 2 CliffDiving" in source.exceptions[1]


def test_frame_columns_are_scaled(tmp_path):
    """Frames taken as sampled frames, or scaled by a rounded rate: 99 sampled frames of 300 make 0.33, not 1/3."""
    source = load_thumos14(make_folder(tmp_path), ["validation"], times="frames")
    assert by_name(source)["v_b"] == ([(pytest.approx((0.99, 1.98)), "Diving")], (pytest.approx((4.95, 5.94)),))
    assert source.lengths["v_b"].num_frames == 99 and source.lengths["v_c"].duration_sec == pytest.approx(10.8)


def test_frames_of_a_video_without_length(tmp_path):
    """Such a video must not vanish, nor pass for scaled."""
    folder = make_folder(tmp_path)
    (folder / "afsd" / "val_video_info.csv").write_text(LENGTHS + "v_a,30.0,10.0,300.0,100\nv_c,25,10,270,108\n")
    source = load_thumos14(folder, ["validation"], times="frames")
    assert by_name(source)["v_b"] == ([((1.0, 2.0), "Diving")], ((5.0, 6.0),))
    assert sum("'v_b'" in s and "cannot be scaled" in s for s in source.exceptions) == 2


def test_seconds_against_frames(tmp_path):
    """THUMOS14 has a video whose frame columns are of another rate: 2 sampled frames are passed over, more are told."""
    folder = make_folder(tmp_path)
    path = folder / "afsd" / "val_Annotation.csv"
    text = path.read_text()
    path.write_text(text.replace("3.0,4.5,90,135", "3.0,4.5,90,141"))
    assert not any("differ by" in s for s in load_thumos14(folder, ["validation"]).exceptions)
    path.write_text(text.replace("3.0,4.5,90,135", "3.0,4.5,90,144").replace("5,6,150,180", "5,6,150,280"))
    told = [s for s in load_thumos14(folder, ["validation"]).exceptions if "differ by" in s]
    assert told == ["video 'v_a': seconds and frame columns of val_Annotation.csv differ by up to 3.0 sampled frames; "
                    "the seconds are used."]


@pytest.mark.parametrize("line", ["v_a  3.0", "v_a  x 4", "v_a  5.0 4.0", "v_a  4.0 4.0", "v_a  -1 4", "v_a  1 nan",
                                  "v_a  1 inf", "v_a  1 2 3", "1 2"])
def test_malformed_line_is_dropped_alone(tmp_path, line):
    """One bad line must be named by file and number, and must not take the good ones with it."""
    folder = make_folder(tmp_path)
    path = folder / "official" / "annotation_val" / "Billiards_val.txt"
    path.write_text(f"v_a  0.5 1.5\n\n{line}\nv_b  7.5 8.5\n")
    source = load_thumos14(folder, ["validation"])
    rows = [(v.name, a.segment_sec) for v in source.videos for a in v.annotations if a.label == "Billiards"]
    assert rows == [("v_a", (0.5, 1.5)), ("v_b", (7.5, 8.5))]
    assert [s for s in source.exceptions if f"{path}:3: " in s and "left out" in s] and len(source.exceptions) == 3


@pytest.mark.parametrize(("row", "words"), [
    ("v_a,Diving,26,3.0,x,90,135", "start and a later end"),
    ("v_a,Diving,26,3.0,2.0,90,135", "start and a later end"),
    ("v_a,Diving,26,3.0,4.5,90,", "start and a later end"),
    ("v_a,Diving", "start and a later end"),
    (",Diving,26,3.0,4.5,90,135", "needs a video"),
    ("v_a,Juggling,1,3.0,4.5,90,135", "'Juggling' is none of"),
])
def test_malformed_row_is_dropped_alone(tmp_path, row, words):
    """As for lines; a short row must not be a traceback."""
    make_folder(tmp_path)
    path = tmp_path / "afsd" / "val_Annotation.csv"
    path.write_text(f"{HEADING}v_a,Billiards,12,1,2,30,60\n{row}\nv_b,Billiards,12,3,4,90,120\n")
    source = load_thumos14(tmp_path / "afsd", ["validation"])
    assert [v.name for v in source.videos] == ["v_a", "v_b"]
    (sentence,) = source.exceptions
    assert sentence.startswith(f"{path}:3: ") and words in sentence


def test_files_that_do_not_belong(tmp_path):
    """A class without its file, a file without its class, and a repeated line are told; the rest is read."""
    folder = make_folder(tmp_path)
    texts = folder / "official" / "annotation_val"
    (texts / "Billiards_val.txt").rename(texts / "Juggling_val.txt")
    (texts / "Diving_val.txt").write_text("v_b 1 2\nv_b 1 2\n")
    source = load_thumos14(folder, ["validation"])
    assert by_name(source)["v_b"][0] == [((1.0, 2.0), "Diving")]
    for words in ("has no file Billiards_val.txt", "'Juggling' is none of the 3", "Diving [1, 2] is written more"):
        assert sum(words in s for s in source.exceptions) == 1, words


def test_bad_length_is_told(tmp_path):
    """A row of the table of lengths that is no number must not stop the others, nor give a length of 0."""
    folder = make_folder(tmp_path)
    path = folder / "afsd" / "val_video_info.csv"
    path.write_text(LENGTHS + "v_a,30,10,300,100\nv_b,0,10,300,100\nv_c,30,10,many,100\n")
    source = load_thumos14(folder, ["validation"])
    assert set(source.lengths) == {"v_a"}
    assert sum(f"{path}:{line}: " in s for s in source.exceptions for line in (3, 4)) == 2


@pytest.mark.parametrize(("arguments", "words"), [
    (["--annotations", "nowhere"], "nowhere: no such folder"),
    (["--annotations", "empty"], "no *_val.txt and no val_Annotation.csv"),
    (["--annotations", "official"], "no val_video_info.csv"),
    (["--annotations", "official", "--times", "frames", "--lengths", "afsd"], "only AFSD's tables have frame columns"),
    (["--annotations", "official", "--lengths", "empty"], "--lengths empty: holds no"),
    (["--annotations", "official", "--lengths", "afsd/none.csv"], "none.csv: cannot be read"),
    (["--annotations", "official", "--lengths", "afsd/val_Annotation.csv"], "names no column 'fps'"),
    (["--annotations", "latin"], "cannot be read as UTF-8"),
    (["--annotations", "classes"], "must name each class once"),
    (["--annotations", "afsd", "--length", "0"], "--length 0"),
])
def test_unusable_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    """A traceback, an empty answer with exit code 0, or output on stdout beside the error."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "latin", "classes"):
        (tmp_path / name).mkdir()
    (tmp_path / "latin" / "Diving_val.txt").write_bytes(b"v_a 1 2\n\xff\xfe\n")
    (tmp_path / "classes" / "detclasslist.txt").write_text("1 Diving\n2 Diving\n")
    assert main(["count", "--subset", "validation", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_count_prints_one_json_object(tmp_path, capsys):
    """Anything else on stdout would break `... | jq`."""
    make_folder(tmp_path)
    arguments = ["count", "--annotations", str(tmp_path), "--subset", "validation", "--length", "32", "--stride", "16"]
    assert main([*arguments, "--rule", "all"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["videos"], result["instances"], result["rule"], result["length"]) == (3, 4, "all", 32)
    assert result["windows"] == 3 * 6 and result["most_targets"] == 2


def test_presets_are_nested_and_named_right():
    """A number that does not say how many videos are left."""
    assert all(len(names) == 213 - number for number, names in TEST_SETS.items())
    assert set(TEST_SETS[212]) < set(TEST_SETS[211]) < set(TEST_SETS[210])


def test_annotations_are_not_shared_between_subsets(tmp_path):
    """One subset's folder alone must do for that subset, and the other must be asked for in one sentence."""
    make_folder(tmp_path)
    assert load_thumos14(tmp_path, ["validation"]).videos[1].annotations == [Annotation((1.0, 2.0), "Diving")]
    with pytest.raises(UserError, match=r"no \*_test\.txt"):
        thumos14.load_thumos14(tmp_path)


SMALL = ["--frame-size", "32", "--flow", "none", "--processes", "1"]


def test_build_from_made_up_folder(tmp_path, capsys):
    """Ambiguous or a subset lost on the way to the dataset, exceptions not stored, a second run that does it again."""
    make_folder(tmp_path / "annotations")
    tests = tmp_path / "annotations" / "official" / "annotation_test"
    tests.mkdir()
    (tests / "Diving_test.txt").write_text("v_t 0.5 1.0\nv_t 2.5 9.0\nv_t 4 5\n")
    for name, seconds in {"v_a": 8, "v_b": 7, "v_c": 3, "v_t": 3}.items():
        folder = tmp_path / "videos" / name[-1]
        folder.mkdir(parents=True)
        write_video(folder / f"{name}.mp4", [np.full((32, 32, 3), 7 * i % 200, np.uint8) for i in range(10 * seconds)],
                    10)
    arguments = ["build", "--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "annotations"),
                 "--output", str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "validation: 3 videos, 180 frames, 4 segments" in out and "test: 1 videos, 30 frames, 2 segments" in out
    assert "Ambiguous segments only" in err and "[4, 5] starts after" in err and "[2.5, 9] ends after" in err
    dataset = open_dataset(tmp_path / "out")
    assert dataset.info["name"] == "THUMOS14" and dataset.classes == ("Diving", "CliffDiving", "Billiards")
    assert set(err.replace("note: ", "").splitlines()) == set(dataset.info["exceptions"])
    videos, exceptions = load_annotations(dataset.ground_truth_path)
    assert exceptions == []
    assert {v.name: v.ambiguous for v in videos} == {
        "v_a": (), "v_b": ((5.0, 6.0),), "v_c": ((0.5, 2.5),), "v_t": ()}
    before = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "videos")
    assert main(arguments) == 0 and "finished" in capsys.readouterr().out
    assert (tmp_path / "out" / "dataset.json").stat().st_mtime_ns == before
    (tests / "Diving_test.txt").write_text("v_t 0.5 1.0\n")
    assert main(arguments) == 2 and "other annotations" in capsys.readouterr().err


def test_build_from_arrays(tmp_path, capsys):
    """Whoever has AFSD's arrays has no videos: none may be asked for, and the frames must be those of the arrays."""
    make_folder(tmp_path / "annotations")
    tests = tmp_path / "annotations" / "official" / "annotation_test"
    tests.mkdir()
    (tests / "Diving_test.txt").write_text("v_t 0.5 1.0\n")
    arrays = {}
    for number, name in enumerate(["v_a", "v_b", "v_c", "v_t"]):
        folder = tmp_path / "npy" / ("test_npy" if name == "v_t" else "validation_npy")
        folder.mkdir(parents=True, exist_ok=True)
        arrays[name] = np.random.default_rng(number).integers(0, 256, (100 + number, 32, 32, 3), np.uint8)
        np.save(folder / f"{name}.npy", arrays[name])
    arguments = ["build", "--annotations", str(tmp_path / "annotations"), "--output", str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 2
    assert "--videos is missing" in capsys.readouterr().err
    assert main([*arguments, "--rgb-from", str(tmp_path / "npy")]) == 0
    dataset = open_dataset(tmp_path / "out")
    for i, video in enumerate(dataset.videos):
        np.testing.assert_array_equal(dataset.read_frames(i, 0, video.num_frames)["rgb"], arrays[video.name])


def test_build_with_a_real_video(shared, real, tmp_path, capsys):
    """A real file under a name of the data set, with the real annotation: frames, times and labels must agree."""
    (tmp_path / "videos").mkdir()
    path = shutil.copy(shared / "videos" / "v_GGSY1Qvo990.mp4", tmp_path / "videos" / "video_test_0000004.mp4")
    arguments = ["build", "--videos", str(tmp_path / "videos"), "--annotations", str(real), "--output",
                 str(tmp_path / "out"), "--preset", "210", *SMALL]
    assert main(arguments) == 2  # 409 videos are not there
    assert "409 of 410 videos" in capsys.readouterr().err
    assert main([*arguments, "--allow-missing"]) == 0
    dataset = open_dataset(tmp_path / "out")
    (video,) = dataset.videos
    decoded = decode_video(path, 10, 32)
    assert (video.name, video.subset, video.fps) == ("video_test_0000004", "test", 10)
    np.testing.assert_array_equal(dataset.read_frames(0, 0, video.num_frames)["rgb"], decoded.frames)
    rows = [(*map(float, line.split()[1:]), label) for label in ("CricketBowling", "CricketShot")
            for line in (real / "official" / "annotation_test" / f"{label}_test.txt").read_text().splitlines()
            if line.startswith("video_test_0000004 ")]
    assert [(a.segment_sec, a.label) for a in video.annotations] == [
        ((start, min(end, decoded.duration_sec)), label) for start, end, label in rows if start < decoded.duration_sec]
    assert len(video.annotations) == 3 and dataset.classes == CLASSES


def test_count_needs_no_tensorflow_datasets():
    """Counting is for before the installation of everything else, and is quick."""
    code = "import sys, data_prep.thumos14, data_prep.activitynet13; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
