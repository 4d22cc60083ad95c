"""data_prep.gmdcsa24: cells with every malformation that the tables have, a made-up folder, and the real one."""

import json
import os
import pathlib

import numpy as np
import pytest

from data_prep import gmdcsa24
from sptad_jax.data.annotations import load_annotations
from sptad_jax.data.video import write_video
from sptad_jax.errors import UserError


@pytest.mark.parametrize(("cell", "segments", "words"), [
    ("Sitting[0 to 1]; Sleeping[2 to 8]", [(0, 1, "sitting"), (2, 8, "sleeping")], []),
    (" Falling (BW) [0.3 to 5]; Standing [0 to 0.2] ", [(0.3, 5, "falling"), (0, 0.2, "standing")], []),
    ("Fall (FW)[2.6 to 6];Walking[0 to 1.3]; ", [(2.6, 6, "falling"), (0, 1.3, "walking")], []),
    ("Falling (SW)[1.8 to 5]:; Walking[0 to 1.8]", [(1.8, 5, "falling"), (0, 1.8, "walking")], ["':'"]),
    ("Falling (SW) [ 2.8 to 6]", [(2.8, 6, "falling")], []),
    ("Walking[3.6 to 5.2; 7.9 to 9.2]", [(3.6, 5.2, "walking"), (7.9, 9.2, "walking")], []),
    ("Standing[2.4 to 3.6; 6.6 to 7.9; Walking[3.6 to 5.2]",
     [(2.4, 3.6, "standing"), (6.6, 7.9, "standing"), (3.6, 5.2, "walking")], ["']' after the segments of 'Standing'"]),
    ("Sitting[0 to 3", [(0, 3, "sitting")], ["']' after"]),
    ("Sitting 0 to 3]", [(0, 3, "sitting")], ["'[' before '0 to 3'"]),
    ("Reading; Sitting[0.8 to 8.1]", [(0.8, 8.1, "sitting")], ["'Reading' has no segment"]),
    ("[0 to 1]; Sitting[1 to 2]", [(1, 2, "sitting")], ["no label before it"]),
    ("Siting[0 to 1]", [(0, 1, "sitting")], ["'Siting' read as 'sitting'"]),
    ("Juggling[0 to 1]; sit[2 to 3]", [(2, 3, "sitting")], ["'Juggling' is unknown"]),
    ("Sitting[0 to 1.2.3]; Walking[2 to 3]", [(2, 3, "walking")], ["cannot be read", "'Sitting' has no segment"]),
    ("Sitting[1 - 2]]", [(1, 2, "sitting")], ["closes nothing"]),
    ("", [], []),
])
def test_cells(cell: str, segments: list, words: list[str]) -> None:
    """Catches a segment given to the wrong label or lost beside a missing bracket, and a repair that is not told."""
    got, remarks = gmdcsa24.parse_classes(cell)
    assert got == segments
    for word in words:
        assert any(word in remark for remark in remarks), (word, remarks)
    assert bool(words) == bool(remarks), remarks


def test_segments_against_the_video() -> None:
    """Catches segments left beyond the end, reversed ones kept, and same-class overlaps kept apart."""
    kept, remarks = gmdcsa24.check_segments(
        [(4, 2, "walking"), (6.5, 7, "walking"), (3, 7, "falling"), (0, 2, "sitting"), (1, 3, "sitting"),
         (1.5, 2.5, "standing"), (5, 6.03, "reading")], duration_sec=6.0)
    assert kept == [(0, 3, "sitting"), (1.5, 2.5, "standing"), (3, 6.0, "falling"), (5, 6.0, "reading")]
    assert len(remarks) == 4  # the end of "reading" is within the tolerance


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two subjects, three real videos of 3 s, a broken one, and a table with one row of each malformation."""
    root = tmp_path / "in"
    for name in ("subject_1/Fall/01", "subject_1/Fall/02", "subject_2/ADL/01", "subject_2/ADL/09"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / f"{name}.mp4", [np.full((16, 16, 3), 90, np.uint8)] * 30, fps=10)
    (root / "subject_2/ADL/02.mp4").write_bytes(b"not a video")
    heading = "File Name,Length (seconds),Time of Recording,Attire,Description, Classes\n"
    (root / "subject_1/Fall.csv").write_text(
        heading + "01.mp4,03,Day,Kurta,Falls, Falling (SW)[1 to 5]:; Walking[0 to 0.9]\n"
        "02.mp4,03,Day,Kurta,Sits down, then falls, Sitting[0 to 1; Fall (BW)[1 to 3]\n\n"
        "03.mp4,03,Day,Kurta,Gone, Fall (BW)[1 to 3]\n"
        "01.mp4,03,Day,Kurta,Again, Sitting[0 to 1]\n"
        "../../../secret.mp4,03,Day,Kurta,Elsewhere, Sitting[0 to 1]\n"
        "04.mp4,03", encoding="utf-8-sig")
    (root / "subject_2/ADL.csv").write_text(
        heading + "01.mp4,03,Day,Kurta,Walks,Walking[0 to 1]; Walking[1.5 to 2]\n"
        "02.mp4,03,Day,Kurta,Broken,Walking[0 to 1]")
    return root


@pytest.mark.parametrize("copy", [False, True])
def test_made_up_folder(folder: pathlib.Path, tmp_path: pathlib.Path, copy: bool) -> None:
    """Catches name clashes between folders, lost rows, silent repairs, and a file that data preparation refuses."""
    output = tmp_path / "out"
    for _ in range(2):  # a second run over the first one's files gives the same
        assert gmdcsa24.main(["--input", str(folder), "--output", str(output)] + ["--copy"] * copy) == 0
    videos, exceptions = load_annotations(output / "annotations.json")
    assert exceptions == []
    assert {v.name: [(a.segment_sec, a.label) for a in v.annotations] for v in videos} == {
        "subject_1_Fall_01": [((0.0, 0.9), "walking"), ((1.0, 3.0), "falling")],
        "subject_1_Fall_02": [((0.0, 1.0), "sitting"), ((1.0, 3.0), "falling")],
        "subject_2_ADL_01": [((0.0, 1.0), "walking"), ((1.5, 2.0), "walking")],
    }
    assert {v.subset for v in videos} == {"train"}
    assert all(v.duration_sec == pytest.approx(3.0) for v in videos)
    files = sorted((output / "videos").iterdir())
    assert [f.stem for f in files] == sorted(v.name for v in videos)
    assert all(f.is_symlink() != copy and f.stat().st_size > 0 for f in files)
    rows = json.loads((output / "rows.json").read_text())
    assert [(r["video"].split("/", 1)[1], r["status"]) for r in rows] == [
        ("Fall/01.mp4", "mended"), ("Fall/02.mp4", "mended"), ("Fall/03.mp4", "dropped"), ("Fall/01.mp4", "dropped"),
        ("Fall/../../../secret.mp4", "dropped"), ("Fall/04.mp4", "dropped"), ("ADL/01.mp4", "kept"),
        ("ADL/02.mp4", "dropped"), ("ADL/09.mp4", "dropped")]
    assert all(bool(r["reasons"]) == (r["status"] != "kept") for r in rows)
    assert "7 cells of 6" in rows[1]["reasons"][0]


def test_report_names_every_change(folder: pathlib.Path, tmp_path: pathlib.Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a printed report that leaves out a row that was dropped or mended."""
    gmdcsa24.main(["--input", str(folder), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.count(": dropped: ") == 6 and printed.count(": mended: ") == 2
    assert "9 rows: 1 kept, 2 mended, 6 dropped" in printed
    assert "falling: 2 instances of 2.0 to 2.0 s" in printed


def test_unusable_input(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback, or an empty annotation file, for a folder that is not this dataset."""
    with pytest.raises(UserError, match="no such folder"):
        gmdcsa24.convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "subject_1").mkdir()
    table = tmp_path / "subject_1" / "Fall.csv"
    table.write_text("a,b\n1,2\n")
    assert gmdcsa24.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "Fall.csv" in capsys.readouterr().err
    table.write_text("File Name,Classes\n01.mp4,Sitting[0 to 1]\n")
    with pytest.raises(UserError, match="not one row"):
        gmdcsa24.convert(tmp_path, tmp_path / "out")
    assert not os.path.exists(tmp_path / "out" / "annotations.json")


def test_real_folder(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Catches a real video without its row, and the one segment that ends after its video."""
    rows = gmdcsa24.convert(shared / "videos" / "gmdcsa24", tmp_path)
    assert len(rows) == 16 + 16 + 22 + 21
    videos, exceptions = load_annotations(tmp_path / "annotations.json")
    assert exceptions == [] and len(videos) == 15 == len(list((tmp_path / "videos").iterdir()))
    mended = [row for row in rows if row.status == "mended"]
    assert [row.video for row in mended] == ["subject_3/Fall/16.mp4"]
    assert mended[0].segments[-1][1:] == (pytest.approx(6.08, abs=0.05), "falling")
    labels = [a.label for v in videos for a in v.annotations]
    assert {label: labels.count(label) for label in set(labels)} == {
        "falling": 8, "standing": 6, "sitting": 5, "walking": 5, "reading": 2, "eating": 1, "exercising": 1}


def test_real_cells(shared: pathlib.Path) -> None:
    """Catches a cell of the real tables, present video or not, that loses a segment: counted by 'to' in the cell."""
    root = shared / "videos" / "gmdcsa24"
    for table in sorted(root.rglob("*.csv")):
        for row, cell in gmdcsa24.read_table(table, root):
            assert row.status == "kept", row
            segments, remarks = gmdcsa24.parse_classes(cell)
            assert len(segments) == cell.count(" to "), cell
            assert bool(remarks) == (row.video in {
                "subject_1/Fall/05.mp4", "subject_3/ADL/04.mp4", "subject_3/ADL/12.mp4"}), (row.video, remarks)
