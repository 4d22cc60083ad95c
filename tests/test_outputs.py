"""Files of detections, read back by FFmpeg, by csv and by the schema in docs."""

import csv
import json
import pathlib

import av
import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sptad_jax.errors import UserError
from sptad_jax.evaluation.files import load_detections
from sptad_jax.inference import outputs

SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "docs" / "detections.schema.json").read_text(encoding="utf-8"))


def row(label, score, start, end):
    return {"label": label, "score": score, "segment": [start, end]}


ROWS = [row("run", 0.9, 65.0, 3725.5), row("long jump", 0.25, 1.25, 2.5), row("run", 0.1234567890123, 0.0, 70.0)]


def read_track(path):
    """What FFmpeg finds in a subtitle file: [(start in ms, end in ms, text)]."""
    cues = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.subtitles[0]):
            if packet.pts is None:
                continue
            start, length = (round(1000 * time * packet.time_base) for time in (packet.pts, packet.duration))
            cues += [(start, start + length, plain_text(part.ass.decode())) for part in packet.decode()]
    return cues


def plain_text(ass):
    """The last of nine fields of FFmpeg's own format, without the marks that keep text from being read as codes."""
    return ass.split(",", 8)[8].replace("\\{{}", "{").replace(outputs.WORD_JOINER, "")


@pytest.mark.parametrize("name", ["a.vtt", "a.SRT"])
def test_tracks_are_read_back(tmp_path, name):
    """Cues out of order, hours that overflow, milliseconds behind the wrong sign, end in place of length."""
    outputs.write_track(tmp_path / name, ROWS)
    assert read_track(tmp_path / name) == [
        (0, 70_000, "run 0.12"), (1250, 2500, "long jump 0.25"), (65_000, 3_725_500, "run 0.90")]
    first = (tmp_path / name).read_text().splitlines()
    assert first[:3] == (["WEBVTT", "", "00:00:00.000 --> 00:01:10.000"] if name == "a.vtt" else
                         ["1", "00:00:00,000 --> 00:01:10,000", "run 0.12"])


# the letters to which subtitle formats give a meaning, and any others
LABELS = st.text(st.one_of(st.sampled_from("<>{}&-\"' \n\r\tbi/an8:0\\"), st.characters(exclude_categories=["C", "Z"])))


@given(label=LABELS.filter(str.strip))
@example(label="<script>alert(1)</script>").via("tags")
@example(label="a\n\n2\n00:00:00,000 --> 00:00:09,000\nb").via("a cue in a label")
@example(label="{\\an8}<b>&lt;").via("codes of players")
@settings(deadline=None, max_examples=150)
def test_any_label_stays_text(tmp_path_factory, label):
    """A label that becomes a tag, ends its cue, or starts another."""
    folder = tmp_path_factory.mktemp("tracks")
    expected = f"{' '.join(label.split())} 0.50"
    for name in ("a.vtt", "a.srt"):
        outputs.write_track(folder / name, [row(label, 0.5, 1.0, 2.0)])
        (cue,) = read_track(folder / name)
        assert cue == (1000, 2000, expected)


def test_short_segments_stay_visible(tmp_path):
    """A cue that ends where it starts, which players refuse; and no cue at all, which must still be a track."""
    for name in ("a.vtt", "a.srt"):
        outputs.write_track(tmp_path / name, [row("run", 0.5, 1.0, 1.0001)])
        assert read_track(tmp_path / name) == [(1000, 1001, "run 0.50")]
        outputs.write_track(tmp_path / name, [])
        assert (tmp_path / name).read_text() == ("WEBVTT\n" if name == "a.vtt" else "")


def test_tables_are_read_back(tmp_path):
    """Rounded scores, lost videos, commas and quotes in labels that shift columns, letters beyond ASCII; JSON that
    the schema of docs or the evaluator refuses."""
    results = {"v1": ROWS, "empty": [], "ü,2": [row('he said "go", then\nran 跑', 0.5, 0.0, 1.0)]}
    for name in ("a.csv", "a.json"):
        outputs.write_table(tmp_path / name, results)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    read = [(r["video"], r["label"], float(r["score"]), float(r["start_sec"]), float(r["end_sec"])) for r in rows]
    assert read == [(v, r["label"], r["score"], *r["segment"]) for v, rows in results.items() for r in rows]
    assert load_detections(tmp_path / "a.json")["results"] == results
    jsonschema.validate(json.loads((tmp_path / "a.json").read_text()), SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("broken", [
    {"segment": [1.0]}, {"segment": [-1.0, 2.0]}, {"score": 1.5}, {"score": "0.5"}, {"label": None}, {"place": 3}])
def test_schema_refuses(broken):
    """A schema that lets everything pass."""
    content = {"version": "VERSION 1.3", "results": {"v": [row("run", 0.5, 0.0, 1.0) | broken]}, "external_data": {}}
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_places_that_cannot_be_written(tmp_path):
    """Hours of detection before it turns out that the result has no place."""
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    for path, words in (("a.txt", ".json, .csv, .vtt, .srt"), ("a", ".json"), ("folder.json", "is a folder"),
                        ("file/a.json", "cannot be made")):
        with pytest.raises(UserError, match=words):
            outputs.check_output(tmp_path / path)
    outputs.check_output(tmp_path / "new" / "a.JSON")
    assert (tmp_path / "new").is_dir()


def test_file_names():
    """A name that leads into another folder, is hidden, or loses its letters."""
    names = {"a": "a", "../b/x.1": "_b_x.1", ".hidden": "hidden", "跑 步": "跑_步", "...": "_", "a:b*c": "a_b_c",
             "é" * 200: "é" * 80}
    assert {name: outputs.file_name(name) for name in names} == names
