"""Reading a dataset back: each kind of damage is found and named, all at once, and a good dataset passes."""

import hashlib
import json
import shutil

import matplotlib.image
import pytest
import tensorflow_datasets as tfds

from data_prep.check import check_dataset, main
from sptad_jax.data.datasets import RECORDS_DIR, open_dataset
from sptad_jax.errors import UserError
from tests.reference.tiny_dataset import make_tiny_dataset

TRAINING, TESTING = (f"records-{subset}.array_record-00000" for subset in ("training", "testing"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "dataset")


def find_problems(folder, quick=False):
    return check_dataset(open_dataset(folder), quick)


def edit(folder, change, file="dataset.json", renew=False):
    """Changes a JSON file; `renew` writes the checksum of ground_truth.json anew, as a careful forger would."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    if renew:
        digest = hashlib.sha256((folder / "ground_truth.json").read_bytes()).hexdigest()
        edit(folder, lambda info: info["checksums"].update({"ground_truth.json": digest}))


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_a_good_dataset(folder, capsys):
    """The whole command: exit code 0, the true numbers, a picture of each kind, nothing on standard error but bars."""
    assert main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "training: 3 videos, 135 frames, 0.00 hours, 5 instances" in out and "testing: 1 videos, 70 frames" in out
    assert "all is well\n" in out and "problem" not in err and "error" not in err
    names = ["00000_long.png", "00001_short.png", "00002_middle.png", "00003_unseen.png", "durations.png"]
    assert sorted(path.name for path in (folder / "check").iterdir()) == names
    for name in names:
        picture = matplotlib.image.imread(folder / "check" / name)
        assert picture.shape[1] == 1300 and picture.std() > 0.05
    assert find_problems(folder) == []  # the pictures are no foreign files


def test_every_record_is_decoded_once(folder, monkeypatch):
    """Catches a pass that skips records or reads them again and again."""
    seen = []
    decode = tfds.features.FeaturesDict.deserialize_example_np

    def count(self, *args, **kwargs):
        record = decode(self, *args, **kwargs)
        seen.append((record["video"].decode(), int(record["chunk"])))
        return record

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", count)
    assert find_problems(folder, quick=True) == [] and seen == []
    assert find_problems(folder) == []
    assert seen == [("long", 0), ("long", 1), ("long", 2), ("short", 0), ("middle", 0), ("middle", 1), ("unseen", 0),
                    ("unseen", 1), ("unseen", 2)]


def test_a_flipped_byte(folder):
    """In a record: by checksum and by the record's own; in the padding between records: by checksum. Not by --quick."""
    path = folder / RECORDS_DIR / TRAINING
    flip_byte(path, 20000)
    problems = find_problems(folder)
    assert len(problems) == 2 and TRAINING in problems[0] and "SHA-256" in problems[0]
    assert f"{TRAINING}: record 0 (video 'long', chunk 0) cannot be read" in problems[1]
    assert find_problems(folder, quick=True) == []
    flip_byte(path, 20000)
    flip_byte(path, path.stat().st_size - 20)
    assert ["SHA-256" in problem for problem in find_problems(folder)] == [True]


def test_damage_in_several_files(folder, capsys):
    """All is listed: one file gone, one cut short, one foreign; and the command says how many, with exit code 2."""
    (folder / RECORDS_DIR / TESTING).unlink()
    path = folder / RECORDS_DIR / TRAINING
    path.write_bytes(path.read_bytes()[:100_000])
    (folder / RECORDS_DIR / f"{TRAINING}.copy").write_bytes(b"x")
    problems = find_problems(folder)
    assert [TESTING in p and "missing" in p for p in problems].count(True) == 1
    assert [f"{TRAINING}.copy: dataset.json does not list" in p for p in problems].count(True) == 1
    assert [f"{TRAINING}: the file cannot be opened" in p for p in problems].count(True) == 1
    assert [f"{TRAINING}: its content has changed" in p for p in problems].count(True) == 1
    quick = find_problems(folder, quick=True)
    assert any("missing" in p for p in quick) and any("cannot be opened" in p for p in quick)
    assert main([str(folder), "--videos", "1"]) == 2
    out, err = capsys.readouterr()
    assert all(f"problem: {problem}\n" in err for problem in problems) and "all is well" not in out
    assert "the picture cannot be drawn" in err and (folder / "check" / "durations.png").exists()
    assert f"{folder}: {len(problems) + 1} problems, listed above" in err and "Traceback" not in err


@pytest.mark.parametrize(("change", "words"), [
    (lambda i: i["subsets"]["training"].update(num_videos=4), "states num_videos 4, its videos make 3"),
    (lambda i: i["subsets"]["testing"].update(num_records=4), "subset 'testing' states num_records 4"),
    (lambda i: i["subsets"].pop("testing"), "'subsets' lacks 'testing'"),
    (lambda i: i.update(hours=i["hours"] + 0.1), "hours"),
    (lambda i: i.update(bytes=i["bytes"] + 1), "bytes of record files"),
    (lambda i: i["checksums"].pop("ground_truth.json"), "'checksums' lacks ground_truth.json"),
    (lambda i: i["checksums"].pop(f"records/1.0.0/{TESTING}"), f"{TESTING}: dataset.json does not list"),
    (lambda i: i["videos"][1].update(first_record=4), "video 'short' states first_record 4"),
    (lambda i: i["videos"][1].update(num_frames=19), "record 3 (video 'short', chunk 0) has rgb of 20 x 36 x 36 x 3"),
    (lambda i: i["videos"][1].update(fps=20), "video 'short' has 20 frames, but 2 s at 20 a second are 40.0"),
    (lambda i: i["videos"][1].update(num_frames=40), "subset 'training' has 6 records, its videos make 7"),
    (lambda i: i["videos"].append(i["videos"][3]), "video 'unseen' is listed more than once"),
    (lambda i: i["videos"].pop(1), "'short' is in ground_truth.json but not in dataset.json"),
    (lambda i: i["videos"][0].update(name="short2"), "'short2' is in dataset.json but not in ground_truth.json"),
    (lambda i: i["videos"][0].update(name="short2"), "belongs to video 'long', chunk 0, and 2 more of this video"),
    (lambda i: i.update(frame_size=40), "has rgb of 32 x 36 x 36 x 3, not 32 x 40 x 40 x 3 bytes"),
    (lambda i: i.update(classes=["jump", "jump"]), "'classes' names a class twice"),
    (lambda i: i.update(classes=["jump"]), "has the label 'run', which 'classes' lacks"),
    (lambda i: i["videos"][3]["annotations"].pop(), "video 'unseen' has 1 instances, but 0 in dataset.json"),
    (lambda i: i["videos"][3]["annotations"][0].update(segment=[2, 7.1]), "[2, 7.1] of 'run' does not lie"),
    (lambda i: i["videos"][3]["annotations"][0].update(segment=[3, 2]), "[3, 2] of 'run' does not lie within"),
    (lambda i: i["videos"][3].update(subset="training"), "'unseen' has another subset or duration"),
])  # fmt: skip
def test_a_wrong_manifest(folder, change, words):
    """Each number of dataset.json, changed by hand, is found, by a sentence that names what is wrong."""
    edit(folder, change)
    problems = find_problems(folder)
    assert any(words in problem for problem in problems), problems
    assert all(str(folder) in problem and problem.endswith(".") for problem in problems)


@pytest.mark.parametrize(("change", "words"), [
    (lambda d: d["long"]["annotations"][0].update(segment=[0.5, 2.1]), "'long' has other segments or labels"),
    (lambda d: d["long"]["annotations"][0].update(label="jump"), "'long' has other segments or labels"),
    (lambda d: d["long"]["annotations"][0].update(label="swim"), "label 'swim', which is not among the 2 expected"),
    (lambda d: d["long"]["annotations"].pop(), "'long' has 1 instances, but 2"),
    (lambda d: d["long"]["annotations"][1].update(segment=[3.0, 9.0]), "[3, 9] ends after the video's end"),
    (lambda d: d.pop("short"), "'short' is in dataset.json but not in ground_truth.json"),
    (lambda d: d.update(new=d["short"]), "'new' is in ground_truth.json but not in dataset.json"),
    (lambda d: d["short"].update(subset="testing"), "'short' has another subset or duration"),
    (lambda d: d["short"].update(duration=3), "'short' has another subset or duration"),
])  # fmt: skip
def test_an_edited_ground_truth(folder, change, words):
    """Evaluation against other segments than training's is found, by checksum and, where that is forged, by content."""
    edit(folder, lambda content: change(content["database"]), "ground_truth.json")
    problems = find_problems(folder)
    assert any("ground_truth.json: its content has changed" in problem for problem in problems)
    edit(folder, lambda content: None, "ground_truth.json", renew=True)
    problems = find_problems(folder)
    assert any(words in problem for problem in problems), problems
    assert not any("SHA-256" in problem for problem in problems)


def test_files_of_each_other(folder):
    """Two files whose names were swapped: the number of records of each, and the records themselves."""
    paths = [folder / RECORDS_DIR / name for name in (TRAINING, TESTING)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents)):
        path.write_bytes(content)
    problems = find_problems(folder, quick=True)
    assert [problem.split("; ")[0].rsplit("/", 1)[1] for problem in problems] == [
        f"{TRAINING}: the file has 3 records instead of 6", f"{TESTING}: the file has 6 records instead of 3"]
    assert sum("belongs to video" in problem for problem in find_problems(folder)) >= 2


def test_many_files(tmp_path, monkeypatch):
    """Catches records that are sought in the wrong file: a subset of several files, the second one damaged."""
    monkeypatch.setattr("data_prep.records.SHARD_RECORDS", 2)
    folder = make_tiny_dataset(tmp_path)
    files = sorted((folder / RECORDS_DIR).glob("records-training*"))
    assert len(files) == 3 and find_problems(folder) == []
    flip_byte(files[1], 3000)
    problems = find_problems(folder)
    assert len(problems) == 2 and files[1].name in problems[0]
    assert f"{files[1].name}: record 0 (video 'long', chunk 2) cannot be read" in problems[1]


def test_a_ground_truth_that_is_no_json(folder):
    """Told like the rest, and the rest is still checked."""
    (folder / "ground_truth.json").write_text("{")
    flip_byte(folder / RECORDS_DIR / TRAINING, 20000)
    problems = find_problems(folder)
    assert any("this is not JSON" in problem for problem in problems) and any("record 0" in p for p in problems)


def test_without_tfds_description(folder):
    """dataset_info.json is gone or damaged: one sentence instead of a traceback of TFDS."""
    (folder / RECORDS_DIR / "dataset_info.json").write_text("{")
    assert any("TFDS' description of the records cannot be read" in problem for problem in find_problems(folder))
    (folder / RECORDS_DIR / "dataset_info.json").unlink()
    assert any("TFDS' description of the records cannot be read" in problem for problem in find_problems(folder))


@pytest.mark.parametrize("change", [
    lambda i: i.pop("checksums"),
    lambda i: i.update(hours="1"),
    lambda i: i.update(subsets=["training"]),
    lambda i: i.update(subsets={"training": 3}),
    lambda i: i.update(chunk_frames=None),
    lambda i: i["videos"][0].update(num_frames="75"),
    lambda i: i["videos"][0].update(num_frames=0),
    lambda i: i["videos"][0].update(fps=0),
    lambda i: i["videos"][0].update(duration_sec=float("nan")),
    lambda i: i["videos"][0]["annotations"][0].update(segment=["a", "b"]),
])  # fmt: skip
def test_a_manifest_beyond_checking(folder, change, capsys):
    """Where the numbers that the checks rest on are no numbers: one sentence, exit code 2, no traceback."""
    edit(folder, change)
    with pytest.raises(UserError, match=r"dataset\.json: .*prepare it again\.$"):
        find_problems(folder)
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_arguments(folder, tmp_path, capsys):
    """No dataset, a negative number, an output that cannot be a folder: one sentence and exit code 2."""
    (tmp_path / "file").write_text("")
    for argv, words in [([str(tmp_path)], "dataset.json is missing"), ([str(folder), "--videos", "-1"], "--videos"),
                        ([str(folder), "--quick", "--output", str(tmp_path / "file")], "--output")]:
        assert main(argv) == 2
        assert words in capsys.readouterr().err


def test_findings_are_told_though_pictures_fail(folder, tmp_path, capsys):
    """Hours of checking thrown away where the dataset's folder is read-only, as shared ones are."""
    edit(folder, lambda info: info.update(hours=99.0))
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--quick", "--output", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err
    assert "problem: " in err and "99 hours" in err and "--output" in err.splitlines()[-1]


def test_quick_says_so(folder, tmp_path, capsys):
    """No one must take a quick look for a full check; and --videos 0 leaves the contact sheets out."""
    assert main([str(folder), "--quick", "--videos", "0", "--output", str(tmp_path / "look" / "deep")]) == 0
    assert "as far as --quick looks" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "look" / "deep").iterdir()] == ["durations.png"]
