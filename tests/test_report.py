"""The two pages: what they show equals what they were given, and they survive anything."""

import base64
import hashlib
import json
import pathlib
import re
import types
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sptad_jax.report.page import dataset_frames, write_detection_report, write_report
from sptad_jax.report.player import drawn, source_url
from sptad_jax.report.records import Instance, read_run
from sptad_jax.report.timeline import FrameStrips
from tests.reference.fake_run import CLASSES, TIOUS, dataset, fill, moving_square

SECTIONS = ("result", "training", "classes", "videos", "scores", "confusion", "errors", "kinds", "proposals", "config",
            "reproduce")
HOSTILE = '<script>alert("x")</script>&$\\frac{1}\x00\'"'


class Reader(HTMLParser):
    """Collects tags, ids and the text inside each section and table cell, as a browser would see them."""

    def __init__(self, page: pathlib.Path):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._section, self._table, self._in_cell = "", "", False
        self.document = page.read_text(encoding="utf-8")
        self.feed(self.document)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.links += [v for k, v in attrs if k.split(":")[-1] in ("href", "src")]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "section":
            self._section = attributes["id"]
            self.sections[self._section] = ""
        elif tag == "table":
            self._table = attributes.get("id", "")
        elif tag == "tr":
            self.tables.setdefault(self._table, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._section:
            self.sections[self._section] += data
        if self._in_cell:
            self.tables[self._table][-1][-1] += data


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Reader, dict, pathlib.Path]:
    workdir = tmp_path_factory.mktemp("run")
    given_values = fill(workdir)
    return Reader(write_report(workdir, moving_square)), given_values, workdir


def test_every_section_is_present_and_full(full):
    """A section dropped, or left with its placeholder although its input is there."""
    reader, _, workdir = full
    assert tuple(reader.sections) == SECTIONS
    assert 'class="empty"' not in re.sub(r"<details>.*?</details>", "", reader.document, flags=re.S)
    assert reader.document.count("<figure>") == 6 + 3 + 5 and "mAP over training" in reader.sections["training"]
    assert reader.document.count("data:image/jpeg") == 30  # ten frames for each of three videos
    assert not list((workdir / "report").glob(".*")), "a temporary file stayed behind"


def test_page_stands_alone_and_is_small(full):
    """A link to the network or to another file, script, clashing ids of inline drawings, or a bloated page."""
    reader, _, workdir = full
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert "url(http" not in reader.document and "script" not in reader.tags
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link[1:] in reader.ids for link in reader.links if link.startswith("#"))
    assert len(reader.document.encode()) < 3_000_000
    assert write_report(workdir, moving_square).read_text() == reader.document, "the page must not vary by itself"


def test_colours_follow_the_scheme(full):
    """A stand-in colour of the charts that was never turned into a variable of the style sheet."""
    reader, _, _ = full
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", reader.document))
    assert used <= set(re.findall(r"(--[a-z0-9]+):", reader.document)) and "--ink" in used
    assert "#01020" not in reader.document and "mathdefault" not in reader.document


def test_values_equal_the_inputs(full):
    """A value shown under the wrong threshold, class, unit or rounding."""
    reader, values, _ = full
    results = values["results"]
    head, row = reader.tables["map-table"]
    assert head == ["mAP (%) at tIoU", *TIOUS, "average"]
    assert row[1:] == ["71.2", "61.2", "51.2", "41.2", "31.2", "51.2"]
    table = reader.tables["class-table"]
    assert table[0][2:] == [*TIOUS, "average"]
    expected = {k: [f"{100 * v[t]:.1f}" for t in (*TIOUS, "average")] for k, v in results["per_class"].items()}
    assert {r[0]: r[2:] for r in table[1:]} == expected
    averages = [float(r[-1]) for r in table[1:]]
    assert averages == sorted(averages, reverse=True)
    result = reader.sections["result"]
    for part in ("1,600", "16 of 16", "1 h 23 min", "21.4 M", f"{results['num_ground_truth']} ground-truth"):
        assert part in result, part
    sizes = {r[0]: r[1:3] for r in reader.tables[""] if r[0].startswith(("test", "validation"))}
    for subset, role in (("test", "evaluation"), ("validation", "training")):
        entries = [v for v in values["database"].values() if v["subset"] == subset]
        assert sizes[f"{subset} ({role})"] == [str(len(entries)), str(sum(len(v["annotations"]) for v in entries))]
    assert values["summary"]["command"] in reader.sections["reproduce"]
    changed = re.findall(r'<tr class="changed"><th scope="row">(\w+)</th>', reader.document)
    assert changed == ["num_stages", "dataset_dir"]
    assert all(field in reader.sections["config"] for group in values["config"].values() for field in group)


def test_hostile_names_are_text(tmp_path):
    """A class or video name that becomes markup, breaks a chart as mathematics, or holds characters HTML refuses."""
    fill(tmp_path, classes=(HOSTILE, "plain", "\ud800 half", "名前"))
    for name in ("detections.json", "prepared/thumos14/ground_truth.json"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("video_test_", json.dumps(HOSTILE)[1:-1]))
    (tmp_path / "run.json").write_text(json.dumps({"command": ["python", HOSTILE], HOSTILE: HOSTILE}))
    reader = Reader(write_report(tmp_path))
    assert "script" not in reader.tags and "<script" not in reader.document and "\0" not in reader.document
    assert '<script>alert("x")</script>' in reader.sections["videos"]
    assert reader.tables["class-table"][1][0] in (HOSTILE.replace("\0", "\ufffd"), "plain", "\ufffd half", "名前")
    page = write_detection_report(
        tmp_path / "detected", {HOSTILE: [{"label": HOSTILE, "score": 0.5, "segment": [1, 2]}]}, (HOSTILE,)
    )
    assert Reader(page).tags.count("script") == 1 and "<script>alert" not in Reader(page).document


FILES = ("config.json", "metrics.jsonl", "results.json", "analysis.json", "detections.json", "run.json",
         "prepared/thumos14/ground_truth.json", "prepared/thumos14/dataset.json")


@pytest.mark.parametrize("missing", FILES)
def test_missing_files_are_tolerated(tmp_path, missing):
    """A traceback after days of training because one file is not there, or silence about it."""
    fill(tmp_path, steps=30)
    (tmp_path / missing).unlink()
    reader = Reader(write_report(tmp_path))
    assert tuple(reader.sections) == SECTIONS
    if missing not in ("run.json", "prepared/thumos14/dataset.json"):  # without these nothing is lost but a line
        assert f"{pathlib.Path(missing).name} is not there" in reader.sections["result"]


@pytest.mark.parametrize("content", ["{ broken", "[1, 2]", '{"data": 3, "map": 4, "results": [5], "per_class": 6}'])
@pytest.mark.parametrize("which", [FILES[1:6], FILES[5:], FILES[:1]], ids=["outputs", "dataset", "config"])
def test_broken_files_are_tolerated(tmp_path, which, content):
    """A file that is cut short, or whose parts have other types than expected, costs the page."""
    fill(tmp_path, steps=30)
    for name in which:
        (tmp_path / name).write_text(content)
    reader = Reader(write_report(tmp_path))
    assert tuple(reader.sections) == SECTIONS
    if not content.startswith('{"'):
        named = [pathlib.Path(name).name for name in which]
        assert all(name in reader.sections["result"] for name in named)


def test_empty_folder_gives_a_page(tmp_path):
    """No sentence, or no page at all, before anything has been written."""
    reader = Reader(write_report(tmp_path / "new"))
    assert tuple(reader.sections) == SECTIONS and "not evaluated yet" in reader.sections["result"]
    assert reader.document.count('class="empty"') >= 8


def test_odd_metrics_lines(tmp_path):
    """NaN drawn or averaged in, a half-written line that ends the reading, or a repeated step counted twice."""
    nan = float("nan")
    lines = [{"step": 10, "loss": 9.0}, {"step": 20, "loss": nan, "loss_l1": 1.0}, {"step": 10, "loss": 3.0},
             {"step": 30, "loss": 2.0, "grad_norm": float("inf")}, {"step": 30, "eval_average_map": 0.25},
             {"loss": 1.0}, [1], {"step": "x"}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    run = read_run(tmp_path)
    assert [(r["step"], r.get("loss")) for r in run.training] == [(10, 3.0), (20, None), (30, 2.0)]
    assert run.nonfinite_steps == [20] and run.evaluations == [{"step": 30, "eval_average_map": 0.25}]
    assert "4 lines of metrics.jsonl" in " ".join(run.notices)
    reader = Reader(write_report(tmp_path))
    assert "25.0" in reader.sections["result"] and "step 30" in reader.sections["result"]
    assert "dotted lines: 20." in reader.sections["training"] and "nan" not in reader.document.lower()


def test_frames_that_cannot_be_read_cost_only_the_pictures(tmp_path):
    """One broken video that takes the whole page with it; a page without bound in size."""
    fill(tmp_path, steps=30)

    def broken(video, times):
        raise OSError("no such file")

    reader = Reader(write_report(tmp_path, broken))
    assert "could not be read" in reader.sections["videos"] and "image" not in reader.tags
    strips = FrameStrips(moving_square, budget=1)
    assert strips.draw("a", 10.0) and not strips.draw("b", 10.0) and strips.skipped == ["b"]


def test_dataset_frames_asks_for_the_right_frames():
    """Pictures from the wrong moment: seconds taken as frames, or a frame past the end."""
    asked = []

    def read_frames(index, start, stop, streams):
        asked.append((index, start, stop))
        return {"rgb": np.full((1, 4, 4, 3), start, np.uint8)}

    videos = [types.SimpleNamespace(name=n, fps=10.0, num_frames=30) for n in "ab"]
    frames_of = dataset_frames(types.SimpleNamespace(streams=("rgb", "flow"), videos=videos, read_frames=read_frames))
    frames = frames_of("b", [0.0, 1.26, 99.0])
    assert [f[0, 0, 0] for f in frames] == [0, 12, 29] and asked == [(1, 0, 1), (1, 12, 13), (1, 29, 30)]
    assert dataset_frames(types.SimpleNamespace(streams=("flow",), videos=videos)) is None


def test_detection_report(tmp_path):
    """A video or a detection left out, a time line without its ground truth, a crash on a video without detections."""
    database, results = dataset(np.random.default_rng(1))
    results["nothing_here"] = []
    lengths = {v: database[v]["duration"] for v in results if v in database} | {"nothing_here": 5.0}
    page = write_detection_report(tmp_path / "out", results, CLASSES, moving_square, lengths, {"database": database})
    assert page == tmp_path / "out" / "index.html"
    reader = Reader(page)
    assert all(video in reader.sections["videos"] for video in results)
    assert "Nothing was detected" in reader.sections["videos"] and "ground truth: " in reader.sections["videos"]
    assert f"{sum(map(len, results.values()))}detections" in reader.sections["summary"]
    best = max(next(iter(results.values())), key=lambda d: d["score"])
    start, end = best["segment"]
    row = [best["label"], f"{best['score']:.3f}", f"{start:.1f}", f"{end:.1f}"]
    assert reader.tables[""][1] == row
    one = {"v": [{"label": "z", "score": 1, "segment": [0, 3]}]}
    plain = Reader(write_detection_report(tmp_path / "plain", one, ()))
    assert "truth: " not in plain.sections["videos"] and "3 s" in plain.sections["videos"]
    assert "video" not in plain.tags, "a player without a file"


SIGNS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
FILE_NAMES = st.text(SIGNS, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))


@given(st.lists(FILE_NAMES, min_size=1, max_size=3), st.lists(FILE_NAMES, min_size=1, max_size=3))
def test_url_of_a_video_leads_to_it(file, folder):
    """A name that a browser takes for a scheme, a query, a fragment or an escape; too many or too few steps up."""
    file, folder = (pathlib.Path("/", *parts) for parts in (file, folder))
    assume(file not in (folder, *folder.parents))  # a folder is no video
    base = (folder / "index.html").as_uri()
    split = urllib.parse.urlsplit(urllib.parse.urljoin(base, source_url(file, folder)))
    assert (split.scheme, split.netloc, split.query, split.fragment) == ("file", "", "", "")
    assert urllib.parse.unquote(split.path) == str(file)


def test_players_and_policy(tmp_path):
    """A player of another file, or for a video without one; a policy that shuts the page's own script out."""
    found = {name: [{"label": "z", "score": 0.5, "segment": [0, 3]}] for name in "ab"}
    page = write_detection_report(tmp_path / "out", found, (), paths={"b": tmp_path / "a 1#.mp4"})
    reader = Reader(page)
    assert [link for link in reader.links if not link.startswith("#")] == ["../a%201%23.mp4"]
    (body,) = re.findall(r"<script>(.*?)</script>", reader.document, re.S)
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', reader.document)
    assert policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")


def test_long_videos_show_every_sure_detection():
    """An hour of actions cut to the first few, or a page without bound."""
    def count(sure, unsure):
        return len(drawn([Instance("a", 0, 1, 0.4)] * sure + [Instance("a", 0, 1, 0.05)] * unsure))

    assert [count(*case) for case in ((3, 4), (3, 90), (60, 90), (300, 0))] == [7, 25, 60, 100]


def test_many_confused_classes_are_cut_to_the_worst(tmp_path):
    """A table of 200 columns, or one that leaves out the classes that matter."""
    fill(tmp_path, steps=30, classes=tuple(f"class_{k:02d}" for k in range(40)), videos=60)
    reader = Reader(write_report(tmp_path))
    assert len(reader.tables["confusion-table"]) == 22 and len(reader.tables["confusion-table"][0]) == 22
