"""What the evaluators read: every form that is allowed, and a sentence for every one that is not."""

import gzip
import json

import pytest

from sptad_jax.errors import UserError
from sptad_jax.evaluation import files

_GOOD = {"label": "a", "score": 0.5, "segment": [0, 1]}


def test_string_times_and_compressed_files(tmp_path):
    """AFSD's THUMOS14 file writes times as strings."""
    truth = {"database": {"v": {"annotations": [{"label": "a", "segment": ["0.5", "10"]}]}}}
    (tmp_path / "gt.json").write_text("\ufeff" + json.dumps(truth), encoding="utf-8")  # as Windows writes UTF-8
    content = json.dumps({"results": {"v": [{**_GOOD, "segment": [0.5, 10]}]}})
    (tmp_path / "det.json.gz").write_bytes(gzip.compress(content.encode()))
    found = files.read_detections(files.load_detections(tmp_path / "det.json.gz"))
    names, table = files.read_ground_truth(files.load_ground_truth(tmp_path / "gt.json"))
    assert names == table.videos == found.videos == ["v"] and table.labels == found.labels == ["a"]
    assert table.segments_sec.tolist() == found.segments_sec.tolist() == [[0.5, 10.0]] and found.scores == [0.5]


def test_ambiguous_segments_are_kept_apart():
    """Ambiguous rows that stay among the actions, or that are lost in one of their two forms or in another subset."""
    rows = [{"label": "Ambiguous", "segment": [2, 3]}, {"label": "a", "segment": [4, 5]}]
    truth = {"database": {"v": {"annotations": rows, "ambiguous": [[0, 1.5]], "subset": "test"},
                          "w": {"annotations": rows[:1], "subset": "train"}}}  # fmt: skip
    names, table = files.read_ground_truth(truth)
    assert names == ["v", "w"] and table.labels == ["a"] and table.segments_sec.tolist() == [[4, 5]]
    apart = files.read_ambiguous(truth, names)
    assert apart.videos == ["v", "v", "w"] and apart.segments_sec.tolist() == [[0, 1.5], [2, 3], [2, 3]]
    assert files.read_ambiguous(truth, ["w"]).segments_sec.tolist() == [[2, 3]]


def test_left_out_videos():
    """The wrong videos left out, the rest of the file lost, or the caller's own copy changed."""
    content = {"version": "1", "results": {"u": [1], "v": [2]}}
    assert files.leave_out(content, "results", {"v", "x"}) == {"version": "1", "results": {"u": [1]}}
    assert content == {"version": "1", "results": {"u": [1], "v": [2]}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"score": 0.5, "segment": [0, 1]}, "'label' is missing"),
        ({"label": "a", "segment": [0, 1]}, "'score' is missing"),
        ({"label": "a", "score": 0.5}, "'segment' is missing"),
        ({**_GOOD, "label": 3}, "'label' is 3"),
        ({**_GOOD, "score": None}, "'score' is None"),
        ({**_GOOD, "score": float("nan")}, "'score' is nan"),
        ({**_GOOD, "score": "high"}, "'score' is 'high'"),
        ({**_GOOD, "score": [0.5]}, "'score' is"),
        ({**_GOOD, "segment": [2, 1]}, "its end lies before its start"),
        ({**_GOOD, "segment": [1]}, "two finite numbers"),
        ({**_GOOD, "segment": [0, float("inf")]}, "two finite numbers"),
        ({**_GOOD, "segment": [0, 10**400]}, "two finite numbers"),
        ({**_GOOD, "segment": 5}, "two finite numbers"),
        ({**_GOOD, "segment": "01"}, "two finite numbers"),
        ("a string", "'label' is missing"),
    ],
)
def test_malformed_detection_is_named(tmp_path, row, words):
    """One bad row among good ones must be refused in a sentence with the file, the video, its number and the field."""
    path = tmp_path / "det.json"
    path.write_text(json.dumps({"results": {"u": [_GOOD], "v7": [_GOOD, row]}}))
    with pytest.raises(UserError) as caught:
        files.load_detections(path)
    for part in (str(path), "'v7'", "detection 1", words):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "'results'"),
        ('{"results": []}', "'results'"),
        ('{"results": {"v": null}}', "expected a list"),
        ('{"results": {"v": {"label": 1}}}', "expected a list"),
        ("[" * 200_000, "not JSON"),
    ],
)
def test_wrong_detection_file_is_named(tmp_path, content, words):
    """Broken syntax, another layout, hostile nesting: a sentence, never a traceback."""
    path = tmp_path / "det.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        files.load_detections(path)
    assert str(path) in str(caught.value)


def test_wrong_ground_truth_is_named(tmp_path):
    """Missing file, damaged archive, no database, no annotations: a sentence, never a traceback."""
    with pytest.raises(UserError, match="no such file"):
        files.load_ground_truth(tmp_path / "absent.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        files.load_ground_truth(tmp_path / "cut.json.gz")
    with pytest.raises(UserError, match="cannot be read"):
        files.load_ground_truth(tmp_path)
    (tmp_path / "gt.json").write_text('{"results": {}}')
    with pytest.raises(UserError, match=r"gt\.json: the key 'database'"):
        files.load_ground_truth(tmp_path / "gt.json")
    (tmp_path / "gt.json").write_text('{"database": {"v": {"subset": "test"}}}')
    with pytest.raises(UserError, match=r"gt\.json: video 'v' has no field 'annotations'"):
        files.load_ground_truth(tmp_path / "gt.json")


@pytest.mark.parametrize("ambiguous, words", [
    (5, "'ambiguous' is 5"), ([[1, 2], [3]], "ambiguous segment 1: 'segment' is [3]"),
    ([[2, 1]], "its end lies before"), ([["a", 2]], "two finite numbers"),
])  # fmt: skip
def test_malformed_ambiguous_segments_are_named(tmp_path, ambiguous, words):
    """A traceback, or a stretch that is silently passed over."""
    path = tmp_path / "gt.json"
    entry = {"annotations": [{"label": "Ambiguous", "segment": [0, 1]}], "ambiguous": ambiguous}
    path.write_text(json.dumps({"database": {"v7": entry}}))
    with pytest.raises(UserError) as caught:
        files.load_ground_truth(path)
    assert all(word in str(caught.value) for word in (str(path), "'v7'", words)), caught.value
