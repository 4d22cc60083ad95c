"""The command `sptad`: figures by hand, files, messages and exit codes."""

import json
import shutil

import numpy as np
import pytest

from data_prep.thumos14 import load_thumos14
from sptad_jax import config as config_lib
from sptad_jax.cli import main
from sptad_jax.data.annotations import to_database
from sptad_jax.data.video import write_video
from sptad_jax.errors import UserError
from sptad_jax.training.checkpoints import Checkpoints
from tests.reference.tiny_training import CONFIG, change, new_state, quick_compilation

GROUND_TRUTH = {"database": {
    "v1": {"subset": "test", "duration": 40, "annotations": [
        {"segment": [0, 10], "label": "run"}, {"segment": [20, 30], "label": "jump"}]},
    "v2": {"subset": "test", "duration": 40, "annotations": [{"segment": [5, 15], "label": "run"}]},
    "v3": {"subset": "train", "duration": 40, "annotations": [{"segment": [5, 15], "label": "run"}]}}}  # fmt: skip
# run: hit, miss, hit -> precision 1 up to recall 1/2, then 2/3: AP 5/6. jump: tIoU 0.5 -> AP 1 up to 0.5, then 0.
DETECTIONS = {"results": {
    "v1": [{"label": "run", "score": 0.9, "segment": [0, 10]}, {"label": "jump", "score": 0.2, "segment": [20, 25]}],
    "v2": [{"label": "run", "score": 0.8, "segment": [30, 34]}, {"label": "run", "score": 0.7, "segment": [5, 15]}]}}


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(GROUND_TRUTH))
    (tmp_path / "det.json").write_text(json.dumps(DETECTIONS))
    return tmp_path


def evaluate(folder, *more):
    files = ["--ground-truth", str(folder / "gt.json"), "--detections", str(folder / "det.json")]
    return main(["evaluate", *files, *more])


def refused(capsys, code):
    """One line on standard error, exit code 2; returns the line."""
    assert code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_evaluate_thumos(files, capsys):
    """Another subset, other thresholds, another protocol; a file that differs from what is printed."""
    assert evaluate(files, "--subset", "test", "--output", str(files / "results.json")) == 0
    results = json.loads((files / "results.json").read_text())
    high, low = (5 / 6 + 1) / 2, 5 / 12
    assert results["map"] == pytest.approx({"0.3": high, "0.4": high, "0.5": high, "0.6": low, "0.7": low})
    assert results["average_map"] == pytest.approx((3 * high + 2 * low) / 5)
    assert (results["num_videos"], results["num_ground_truth"], results["num_detections"]) == (2, 3, 4)
    assert results["subset"] == "test" and results["per_class"]["run"]["0.7"] == pytest.approx(5 / 6)
    printed = capsys.readouterr().out
    assert "91.7" in printed and "41.7" in printed and "71.7" in printed


def test_evaluate_presets_and_thresholds(files):
    """A preset or list of thresholds that is not used; without --subset every video counts (v3 is missed)."""
    assert evaluate(files, "--preset", "activitynet13", "--output", str(files / "a.json"), "--subset", "test") == 0
    assert evaluate(files, "--tiou", "0.5,0.9", "--output", str(files / "b.json")) == 0
    a, b = (json.loads((files / name).read_text()) for name in ("a.json", "b.json"))
    assert list(a["map"]) == ["0.5", "0.55", "0.6", "0.65", "0.7", "0.75", "0.8", "0.85", "0.9", "0.95"]
    assert a["average_map"] == pytest.approx(5 / 12 + 0.5 / 10)
    # run: 2 of 3 found, precision 1 then 2/3, each for a third of recall
    assert b["per_class"]["run"]["0.5"] == pytest.approx(5 / 9) and list(b["map"]) == ["0.5", "0.9"]


def test_evaluate_by_the_protocol_of_thumos14(files):
    """The option that still evaluates by ActivityNet's protocol, where the jump, of tIoU 0.5, counts at 0.5."""
    options = ["--protocol", "thumos-official", "--subset", "test", "--tiou", "0.4,0.5"]
    assert evaluate(files, *options, "--output", str(files / "results.json")) == 0
    results = json.loads((files / "results.json").read_text())
    assert results["protocol"] == "thumos-official" and results["map"] == pytest.approx({"0.4": 11 / 12, "0.5": 5 / 12})
    assert (results["num_videos"], results["num_ground_truth"], results["num_detections"]) == (2, 3, 4)


@pytest.mark.parametrize("protocol", ["activitynet", "thumos-official"])
def test_evaluate_without_blocked_videos(files, capsys, protocol):
    """A blocked video of which the ground truth, or the detections, stay: run would have an AP of 1/2 or less."""
    (files / "blocked.json").write_text('["v2", "another"]')
    options = ["--protocol", protocol, "--subset", "test", "--tiou", "0.4", "--blocked", str(files / "blocked.json")]
    assert evaluate(files, *options, "--output", str(files / "results.json")) == 0
    results = json.loads((files / "results.json").read_text())
    assert results["map"] == {"0.4": 1.0}
    assert (results["num_videos"], results["num_ground_truth"], results["num_detections"]) == (1, 2, 2)
    assert "left out: 1 of 2 videos" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"v2": true}', "[2]", "v2"])
def test_evaluate_bad_blocked_file(files, capsys, content):
    """A list in another form that blocks nothing, or a traceback."""
    (files / "blocked.json").write_text(content)
    assert "blocked.json" in refused(capsys, evaluate(files, "--blocked", str(files / "blocked.json")))


def test_evaluate_per_class(files, capsys):
    """A table whose rows are of other classes than their names, or without the mean."""
    assert evaluate(files, "--subset", "test", "--tiou", "0.5,0.6", "--per-class") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["0.5", "0.6", "Avg"], ["jump", "100.0", "0.0", "50.0"], ["run", "83.3", "83.3", "83.3"],
                     ["mAP", "91.7", "41.7", "66.7"]]  # fmt: skip


def test_evaluate_ties_in_the_official_order(files):
    """The option has no effect: by file order the hit comes first; the script's reversed sort puts it last."""
    rows = [{"label": "run", "score": 0.5, "segment": [start, start + 10]} for start in (0, 60)]
    (files / "det.json").write_text(json.dumps({"results": {"v1": rows}}))
    ap = []
    for more in ([], ["--official-order"]):
        options = ["--subset", "test", "--tiou", "0.5", *more, "--output", str(files / "results.json")]
        assert evaluate(files, *options) == 0
        ap.append(json.loads((files / "results.json").read_text())["per_class"]["run"]["0.5"])
    assert ap == [1 / 2, 1 / 4]


def test_evaluate_on_the_test_sets_of_thumos14(shared, tmp_path, capsys):
    """A set with another number of videos than its name says, or one that does not check it: 210 of 213."""
    truth = to_database(load_thumos14(shared / "thumos14" / "official").videos)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "det.json").write_text('{"results": {}}')
    for number, instances in ((213, 3358), (212, 3358), (211, 3329), (210, 3311)):
        options = ["--subset", "test", "--test-set", str(number), "--output", str(tmp_path / "results.json")]
        assert evaluate(tmp_path, *options) == 0
        results = json.loads((tmp_path / "results.json").read_text())
        assert (results["num_videos"], results["num_ground_truth"]) == (number, instances)
    assert "410 videos" in refused(capsys, evaluate(tmp_path, "--test-set", "210"))
    shutil.copy(shared / "thumos14" / "afsd" / "thumos_gt.json", tmp_path / "gt.json")
    assert evaluate(tmp_path, "--subset", "test", "--test-set", "210") == 0
    assert "210 videos" in refused(capsys, evaluate(tmp_path, "--subset", "test", "--test-set", "213"))


@pytest.mark.parametrize("options, words", [
    (["--tiou", "0.5,x"], ["--tiou 0.5,x"]), (["--tiou", "0"], ["--tiou 0", "(0, 1]"]), (["--tiou", "1.5"], ["1.5"]),
    (["--subset", "testing"], ["gt.json", "testing", "test, train"]),
    (["--output", "/dev/null/results.json"], ["/dev/null/results.json"]),
    (["--test-set", "210", "--subset", "test"], ["--test-set 210", "gt.json", "2 videos", "'test'"]),
    (["--blocked", "absent.json"], ["absent.json", "no such file"]),
    (["--protocol", "thumos-official", "--official-order"], ["--official-order"]),
])  # fmt: skip
def test_evaluate_bad_options(files, capsys, options, words):
    """A traceback, or an error that does not say which option."""
    line = refused(capsys, evaluate(files, *options))
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name, content, words", [
    ("gt.json", None, ["gt.json"]), ("det.json", None, ["det.json"]), ("gt.json", '{"database": ', ["gt.json"]),
    ("det.json", '{"detections": {}}', ["det.json", "results"]),
    ("det.json", '{"results": {"v1": [{"label": "run", "score": 0.5}]}}', ["det.json", "v1", "segment"]),
])  # fmt: skip
def test_evaluate_bad_files(files, capsys, name, content, words):
    """A missing or malformed file that gives a traceback, or an mAP of 0."""
    (files / name).unlink()
    if content is not None:
        (files / name).write_text(content)
    line = refused(capsys, evaluate(files))
    assert all(word in line for word in words), line


@pytest.mark.parametrize("arguments", [[], ["detect"], ["evaluate"], ["fly"], ["export", "--checkpoint", "a"]])
def test_usage_errors(arguments, capsys):
    """An exit code of success where nothing was done."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and "usage: sptad" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    ["export", "--checkpoint", "demo", "--output", "gs://bucket/a.safetensors"],
    ["detect", "a.mp4", "--output", "a.json", "--output", "gs://bucket/b.json"],
    ["detect", "a.mp4", "--report", "s3://bucket/page"],
    ["inspect", "demo", "--report", "gs://bucket/page"],
])  # fmt: skip
def test_addresses_are_no_folders(arguments, tmp_path, capsys, monkeypatch):
    """Success, and the results in a folder "gs:" of a machine that is thrown away."""
    monkeypatch.chdir(tmp_path)
    assert "file or folder of this machine" in refused(capsys, main(arguments))
    assert list(tmp_path.iterdir()) == []


def test_debug_at_the_end_of_the_line():
    """A switch that every other command takes there."""
    for arguments in (["detect", "a.mp4", "--checkpoint", "absent", "--debug"], ["--debug", "export", "--checkpoint",
                                                                                 "absent", "--output", "a.zip"]):
        with pytest.raises(UserError):
            main(arguments)


@pytest.mark.parametrize("command", ["evaluate", "detect"])
def test_help_has_examples(command, capsys):
    """A help page without a line to copy, or that stumbles over a % sign."""
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0 and f"  sptad {command} " in capsys.readouterr().out


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A checkpoint as training leaves it, and two videos."""
    folder = tmp_path_factory.mktemp("run")
    config = change(CONFIG, inference={"min_score": 0.0}, data={"stride_test": 8})
    source = {"fps": 10.0, "frame_size": 20, "max_frames": 0, "flow": None}
    checkpoints = Checkpoints(folder / "checkpoints", 1)
    meta = {"config": config_lib.to_dict(config), "classes": ["run", "jump"], "source": source}
    checkpoints.save(new_state(config), {}, meta)
    checkpoints.close()
    rng = np.random.default_rng(0)
    for name, count in (("a/x.mp4", 30), ("b/x.mp4", 12)):
        (folder / name).parent.mkdir()
        write_video(folder / name, rng.integers(0, 256, (count, 20, 20, 3), np.uint8), 10)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def test_detect(run_folder, tmp_path, capsys):
    """One broken file that spoils the others, or that is forgotten in the exit code; two videos of the same name of
    which one gets lost; printed lines, file and report that do not agree."""
    paths = [str(run_folder / name) for name in ("a/x.mp4", "broken.mp4", "b/x.mp4")]
    truth = {"database": {"x": {"subset": "test", "annotations": [{"label": "jump", "segment": [0.5, 2.25]}]}}}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    options = ["--output", str(tmp_path / "det.json"), "--report", str(tmp_path / "report"), "--threshold", "0",
               "--ground-truth", str(tmp_path / "gt.json")]  # fmt: skip
    with quick_compilation():
        code = main(["detect", *paths, "--checkpoint", str(run_folder), *options])
    out, err = capsys.readouterr()
    assert code == 2
    assert len(err.splitlines()) == 2 and "broken.mp4" in err.splitlines()[0] and "1 of 3 videos" in err.splitlines()[1]
    results = json.loads((tmp_path / "det.json").read_text())["results"]
    assert len(results) == 2, "two videos called x"
    found = [row for rows in results.values() for row in rows]
    assert found and {row["label"] for row in found} <= {"run", "jump"}
    for rows, duration in zip(results.values(), (3.0, 1.2)):
        assert rows and all(0 <= start < end <= duration + 1e-9 for start, end in (row["segment"] for row in rows))
    assert f"{paths[0]}  (3.0 s)" in out and f"{paths[2]}  (1.2 s)" in out
    assert sum(line.startswith("  ") for line in out.splitlines()) == len(found)
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"report: {tmp_path / 'report' / 'index.html'}" in out and "data:image" in page
    assert "<video controls" in page and "ground truth: jump, 0.5–2.2 s" in page


def test_detect_without_checkpoint(tmp_path, capsys):
    """A traceback for a misspelt folder."""
    line = refused(capsys, main(["detect", "a.mp4", "--checkpoint", str(tmp_path / "absent")]))
    assert "--checkpoint" in line and "absent" in line
