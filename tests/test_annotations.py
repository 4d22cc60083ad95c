"""Reading ActivityNet-format files: what is kept, what is dropped, and that each exception says what to do."""

import json
import pathlib

import pytest

from sptad_jax.data.annotations import Annotation, Video, find_classes, load_annotations, to_database
from sptad_jax.errors import UserError


def write(tmp_path: pathlib.Path, rows: list, duration: object = 10.0) -> pathlib.Path:
    path = tmp_path / "gt.json"
    entry = {"subset": "training", "duration": duration, "annotations": rows}
    path.write_text(json.dumps({"database": {"clip": entry}}))
    return path


def test_good_rows_and_string_times(tmp_path):
    """Times written as strings (as in AFSD's thumos_gt.json) that stay strings would break all arithmetic."""
    path = write(tmp_path, [{"segment": ["1.5", "2"], "label": "run"}, {"segment": [3, 9.5], "label": "jump"}], "10")
    videos, exceptions = load_annotations(path)
    rows = [Annotation((1.5, 2.0), "run"), Annotation((3.0, 9.5), "jump")]
    assert videos == [Video("clip", "training", 10.0, rows)]
    assert exceptions == []
    assert find_classes(videos) == ("jump", "run")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"segment": [5, 3], "label": "a"}, "ends before it starts"),
        ({"segment": [3, 3], "label": "a"}, "ends before it starts"),
        ({"segment": [-1, 3], "label": "a"}, "starts before 0"),
        ({"segment": ["x", 3], "label": "a"}, "not two numbers"),
        ({"segment": [1, float("nan")], "label": "a"}, "not two numbers"),
        ({"segment": [1, float("inf")], "label": "a"}, "not two numbers"),
        ({"segment": [1, True], "label": "a"}, "not two numbers"),
        ({"segment": [1], "label": "a"}, "needs a 'segment'"),
        ({"label": "a"}, "needs a 'segment'"),
        ({"segment": [1, 2]}, "needs a 'label'"),
        ({"segment": [1, 2], "label": 7}, "needs a 'label'"),
        ("nonsense", "needs a 'segment'"),
        ({"segment": [1, 2], "label": "z"}, "label 'z'"),
        ({"segment": [1, 2], "label": "half \ud83d"}, r"label 'half \ud83d', which holds half a character"),
        ({"segment": [10, 12], "label": "a"}, "starts after the video's end"),
        ({"segment": [0.5, 1], "label": "a"}, "repeats an earlier one"),
    ],
)
def test_bad_row_is_dropped_alone(tmp_path, row, words):
    """One bad row must neither stop the run, nor slip in, nor take good rows with it; its sentence names the place."""
    good = [{"segment": [0.5, 1], "label": "a"}, {"segment": [2, 4], "label": "b"}]
    path = write(tmp_path, [good[0], row, good[1]])
    videos, exceptions = load_annotations(path, classes=("a", "b"))
    assert [a.segment_sec for a in videos[0].annotations] == [(0.5, 1.0), (2.0, 4.0)]
    assert len(exceptions) == 1
    assert words in exceptions[0] and str(path) in exceptions[0] and "'clip'" in exceptions[0]


def test_end_beyond_video_is_cut(tmp_path):
    """THUMOS14 has such rows: they must be cut and told, and rounding of the duration must not be told."""
    path = write(tmp_path, [{"segment": [8, 12], "label": "a"}, {"segment": [9, 10.04], "label": "a"}])
    videos, exceptions = load_annotations(path)
    assert [a.segment_sec for a in videos[0].annotations] == [(8.0, 10.0), (9.0, 10.0)]
    assert len(exceptions) == 1 and "[8, 12]" in exceptions[0]


def test_same_times_of_two_labels_are_no_repetition(tmp_path):
    """CliffDiving is annotated as Diving too, at the same times: both must stay."""
    rows = [{"segment": [1, 2], "label": "CliffDiving"}, {"segment": [1, 2], "label": "Diving"}]
    videos, exceptions = load_annotations(write(tmp_path, rows))
    assert len(videos[0].annotations) == 2 and not exceptions


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "'database'"),
        (b"{}", "'database'"),
        (b'{"database": []}', "'database'"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_structural_errors_stop(tmp_path, content, words):
    """A file of another kind must give one sentence that names it, not a traceback."""
    path = tmp_path / "gt.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_annotations(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    """A mistyped path is the commonest error of all."""
    with pytest.raises(UserError, match="no such annotation file"):
        load_annotations(tmp_path / "none.json")


def test_bad_entries_of_the_database(tmp_path):
    """A video without subset, a name that climbs out of the folder, a repeated name: told, and the rest is read."""
    path = tmp_path / "gt.json"
    path.write_text(
        '\ufeff{"database": {"a": {"subset": "t"}, "b": 3, "../c": {"subset": "t"}, "/d": {"subset": "t"}, '
        '"e": {"subset": "t", "duration": "long", "annotations": 5}, "a": {"subset": "u"}}}', encoding="utf-8")
    videos, exceptions = load_annotations(path)
    assert [(v.name, v.subset, v.duration_sec) for v in videos] == [("a", "u", 0.0), ("e", "t", 0.0)]
    assert len(exceptions) == 6


def test_half_a_character(tmp_path):
    """JSON's escapes hold what no file can: it would be told after all decoding, when dataset.json is written."""
    path = tmp_path / "gt.json"
    path.write_text(r'{"database": {"a\ud83d": {"subset": "t"}, "b": {"subset": "\udc00"}, "c": {"subset": "t"}, '
                    r'"d\ud83d": 1, "d\ud83d": 2}}')
    videos, exceptions = load_annotations(path)
    assert [video.name for video in videos] == ["c"] and len(exceptions) == 4
    for sentence in exceptions:
        assert sentence.encode() and sentence.startswith(f"{path}: ")
    assert r"video 'a\ud83d': the name holds half a character" in "".join(exceptions)


def test_round_trip(tmp_path):
    """ground_truth.json is written by to_database: what it loses, the evaluation would not see."""
    videos = [Video("v", "test", 7.25, [Annotation((1.0, 2.5), "x"), Annotation((2.0, 7.0), "y")]),
              Video("w", "test", 3.0, [])]
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(to_database(videos)))
    assert load_annotations(path) == (videos, [])


def test_ambiguous_goes_both_ways(tmp_path):
    """THUMOS14's Ambiguous must neither become a target, nor be lost on the way through ground_truth.json."""
    videos = [Video("v", "test", 7.0, [Annotation((1.0, 2.5), "x")], ((3.0, 4.0), (5.5, 6.0))),
              Video("w", "test", 3.0, [])]
    database = to_database(videos)
    assert database["database"]["v"]["ambiguous"] == [[3.0, 4.0], [5.5, 6.0]]
    assert "ambiguous" not in database["database"]["w"]  # files of other datasets stay as they were
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(database))
    assert load_annotations(path) == (videos, [])
    assert find_classes(videos) == ("x",)
    entry = database["database"]["v"]
    entry["annotations"].append({"label": "Ambiguous", "segment": entry["ambiguous"].pop()})  # as some files have it
    path.write_text(json.dumps(database))
    assert load_annotations(path, classes=["x"]) == (videos, [])


@pytest.mark.parametrize("rows", [5, "1, 2", [[1]], [[2, 1]], [[1, 2, 3]], [["x", 2]], [None], [[-1, 2]], {"a": 1},
                                  [[1, float("inf")]]])
def test_bad_ambiguous_is_told(tmp_path, rows):
    """A traceback, or silence, for a stretch that cannot be read; the good one beside it and the rows go on."""
    path = tmp_path / "gt.json"
    entry = {"subset": "t", "annotations": [{"segment": [1, 2], "label": "a"}]}
    listed = [*rows, [3, 4]] if isinstance(rows, list) else rows
    path.write_text(json.dumps({"database": {"v": {**entry, "ambiguous": listed}}}))
    (video,), exceptions = load_annotations(path)
    assert video.ambiguous == (((3.0, 4.0),) if isinstance(rows, list) else ())
    assert len(video.annotations) == 1
    assert len(exceptions) == 1 and "'ambiguous'" in exceptions[0] and "'v'" in exceptions[0]


def test_real_files(shared):
    """Published files must load whole: AFSD's ground truth has string times and 210 + 200 videos."""
    videos, _ = load_annotations(shared / "thumos14" / "afsd" / "thumos_gt.json")
    counts = {s: sum(len(v.annotations) for v in videos if v.subset.lower() == s) for s in ("test", "validation")}
    assert counts["test"] == 3311 and sum(v.subset.lower() == "test" for v in videos) == 210
