"""`sptad detect`: what it takes, writes and says. Broken input is in test_hostile.py, formats in test_outputs.py."""

import csv
import json
import signal
import sys

import av
import numpy as np
import pytest

import sptad_jax
from sptad_jax.cli import main
from sptad_jax.data.video import write_video
from sptad_jax.inference import command
from tests.reference.detector_run import make_run
from tests.reference.tiny_training import quick_compilation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and videos/ with two of one name, one below, and a file that is no video."""
    root = make_run(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    for name, count in (("videos/x.mp4", 30), ("videos/below/x.mp4", 12), ("videos/y.MP4", 20), ("single.mp4", 20)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, rng.integers(0, 256, (count, 20, 24, 3), np.uint8), 10)
    (root / "videos" / "notes.txt").write_text("no video")
    return root


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)


def detect(folder, *arguments):
    with quick_compilation():
        return main(["detect", *map(str, arguments), "--checkpoint", str(folder)])


def printed_rows(out):
    """(start, end, score, label) of the lines of detections."""
    rows = [line.split(maxsplit=5) for line in out.splitlines() if line.startswith("  ")]
    return [(float(row[0]), float(row[2]), float(row[4]), row[5]) for row in rows]


def test_a_folder_to_every_format(folder, tmp_path, capsys):
    """Videos of a folder forgotten, doubled or mixed up; formats that disagree; tracks that overwrite each other."""
    formats = [option for name in ("a.json", "a.csv", "t/a.vtt", "t/a.srt") for option in ("--output", tmp_path / name)]
    assert detect(folder, folder / "videos", folder / "videos" / "x.mp4", *formats, "--threshold", 0) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    below = str(folder / "videos" / "below" / "x.mp4")
    assert list(results) == ["x", str(folder / "videos" / "x.mp4"), "y"] and f"{below}  (1.2 s)" in out
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        table = [(r["video"], r["label"], float(r["score"]), [float(r["start_sec"]), float(r["end_sec"])])
                 for r in csv.DictReader(file)]  # fmt: skip
    assert table == [(v, r["label"], r["score"], r["segment"]) for v, rows in results.items() for r in rows]
    assert len(printed_rows(out)) == len(table) > 9
    tracks = sorted(path.name for path in (tmp_path / "t").iterdir())
    assert len(tracks) == 6 and {"a.x.vtt", "a.y.vtt", "a.x.srt", "a.y.srt"} < set(tracks)
    for name, video in (("a.x.vtt", "x"), ("a.y.srt", "y")):
        assert (tmp_path / "t" / name).read_text().count("-->") == len(results[video])


def test_filters(folder, tmp_path, capsys):
    """A filter that prints one thing and writes another; a default threshold that thins out the file for evaluation."""
    single, output = folder / "single.mp4", tmp_path / "a.json"
    assert detect(folder, single, "--output", output, "--output", tmp_path / "all.vtt") == 0
    every = json.loads(output.read_text())["results"]["single"]
    shown = [row for row in every if row["score"] >= command.SHOWN_SCORE]
    assert len(printed_rows(capsys.readouterr().out)) == len(shown) < len(every)
    assert (tmp_path / "all.vtt").read_text().count("-->") == len(shown)
    limit = sorted(row["score"] for row in every)[len(every) // 2]
    options = ["--threshold", repr(limit), "--classes", "jump", "--top-k", 2]
    assert detect(folder, single, "--output", output, *options) == 0
    expected = [row for row in every if row["score"] >= limit and row["label"] == "jump"][:2]
    assert json.loads(output.read_text())["results"]["single"] == expected != []
    assert [row[3] for row in printed_rows(capsys.readouterr().out)] == ["jump"] * len(expected)


def test_options_of_inference(folder, tmp_path, capsys):
    """An option that is taken and not used: windows at every frame, votes, no NMS, a cut; the same from Python."""
    def rows(*changes):
        output = tmp_path / "a.json"
        options = [word for change in changes for word in ("--set", change)]
        assert detect(folder, folder / "single.mp4", "--output", output, *options) == 0
        return json.loads(output.read_text())["results"]["single"]

    plain, cut = rows("inference.nms=none"), rows("inference.nms=none", "inference.min_score=0.3")
    assert 0 < len(cut) < len(plain) and cut == [row for row in plain if row["score"] >= 0.3]
    dense = rows("inference.nms=none", "data.stride_test=1")
    assert len(dense) > len(plain)
    voted = rows("inference.nms=none", "data.stride_test=1", "inference.vote=true")
    assert len(voted) == len(dense) and voted != dense
    with quick_compilation():
        api = sptad_jax.load(folder, overrides=["inference.nms=none", "data.stride_test=1", "inference.vote=true"])
        assert api.detect(folder / "single.mp4") == voted
        single = sptad_jax.load(folder, overrides="inference.nms=none")  # not taken letter by letter
        assert single.detect(folder / "single.mp4") == plain


def test_labelled_copy(folder, tmp_path, capsys):
    """A copy under the name of the source, of another video, or without labels."""
    assert detect(folder, folder / "single.mp4", "--render", tmp_path / "new", "--threshold", 0) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "single.detected.mp4"
    with av.open(str(folder / "single.mp4")) as before, av.open(str(path)) as after:
        assert len(list(before.decode(video=0))) == len(list(after.decode(video=0))) == 20
        assert before.streams.video[0].average_rate == after.streams.video[0].average_rate


@pytest.mark.parametrize("options, words", [
    (["--classes", "run,fly"], "unknown class fly; the detector knows: run, jump"),
    (["--threshold", "1.5"], "--threshold 1.5"), (["--threshold", "nan"], "--threshold nan"),
    (["--set", "inference.vot=true"], "did you mean 'inference.vote'?"),
    (["--set", "model.eta=3"], "--set model.eta: cannot change after training"),
    (["--set", "inference.external_scores=a.json"], "--set inference.external_scores"),
    (["--set", "data.stride_test=99999"], "data.stride_test (99999) must be at most"),
    (["--top-k", "0"], "--top-k 0"), (["--output", "a.xml"], "a.xml"),
    (["--output", "/dev/null/a.json"], "/dev/null/a.json"), (["--render", "/dev/null/x"], "--render /dev/null/x"),
])  # fmt: skip
def test_options_are_refused_before_the_work(folder, capsys, monkeypatch, options, words):
    """Hours of detection that end in an error that was there from the start."""
    monkeypatch.setattr("sptad_jax.inference.detect.detect_video", None)
    assert detect(folder, folder / "single.mp4", *options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and words in err


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_interrupted(folder, tmp_path, monkeypatch, by):
    """What was found before Ctrl-C or a scheduler's signal, lost."""
    from sptad_jax.inference import detect as module

    real = module.detect_video

    def stop_at_y(detector, path, on_progress):
        if str(path).endswith("y.MP4"):
            if by == "Ctrl-C":
                raise KeyboardInterrupt  # pytest's workers ignore SIGINT
            signal.raise_signal(signal.SIGTERM)
        return real(detector, path, on_progress)

    monkeypatch.setattr(module, "detect_video", stop_at_y)
    assert detect(folder, folder / "videos", "--output", tmp_path / "a.json") == 130
    assert len(json.loads((tmp_path / "a.json").read_text())["results"]) == 2


def test_progress_in_a_log(capsys, monkeypatch):
    """A bar's carriage returns in a log, lines without rate or time left, hundreds of lines a minute."""
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(now))
    with command.show_progress("a.mp4", 200.4) as on_progress:
        for seconds in range(0, 240, 20):
            on_progress(seconds)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a.mp4: 40 of 201 s, 1.3 s of video a second, 02:00 left",
                     "a.mp4: 100 of 201 s, 1.7 s of video a second, 01:00 left",
                     "a.mp4: 160 of 201 s, 1.8 s of video a second, 00:23 left",
                     "a.mp4: 201 of 201 s, 1.7 s of video a second, 00:00 left"]
    now = iter(range(0, 1000, 10))
    with command.show_progress("a.mp4", 0.0) as on_progress:
        for seconds in (1, 2, 30):
            on_progress(seconds)
    assert capsys.readouterr().err == "a.mp4: 30 s, 1.0 s of video a second\n"


def test_progress_on_a_terminal(monkeypatch, capsys):
    """No bar, or one without rate and time left; a bar that runs beyond the end where the header was wrong."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with command.show_progress("a.mp4", 100.0) as on_progress:
        for seconds in (10.7, 50.2, 130.0):
            on_progress(seconds)
            command.time.sleep(0.11)
    bars = capsys.readouterr().err.split("\r")
    assert any("50%" in bar and "50/100" in bar and "s of video/s" in bar and "<" in bar for bar in bars)
    assert not any("130" in bar for bar in bars)


def test_names_of_files_with_accents(tmp_path):
    """Detections under a name that looks like the annotations' but is none of theirs, as macOS writes accents apart."""
    (tmp_path / "Ka\u0308se.mp4").touch()
    (video,) = command._list_videos([str(tmp_path)])
    assert video.name == "K\u00e4se" and video.path.endswith("Ka\u0308se.mp4")
