"""data_prep.synthetic: what the pixels show is what the labels say, and nothing but motion says it."""

import dataclasses
import json
import pathlib

import av
import cv2
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from data_prep import synthetic, synthetic_actions, synthetic_scene
from data_prep.synthetic import Settings, plan_video
from data_prep.synthetic_actions import CLASSES, PAIRS, Instance
from sptad_jax.data.annotations import load_annotations
from sptad_jax.data.video import decode_video
from sptad_jax.errors import UserError

SMALL = Settings(size=32, min_sec=3, max_sec=4)


def test_durations_are_spread_as_thumos14() -> None:
    """Catches another distribution, and timelines that reject long actions: quantiles published for THUMOS14."""
    drawn = synthetic_actions.draw_durations(np.random.default_rng(0), 20000)
    planned = [x.end_sec - x.start_sec for i in range(600) for lane in plan_video(Settings(), "train", i).lanes
               for x in lane]
    for share, seconds in ((0.05, 0.7), (0.25, 1.5), (0.5, 2.9), (0.75, 5.5), (0.95, 9.7)):
        assert np.quantile(drawn, share) == pytest.approx(seconds, rel=0.05)
        assert np.quantile(planned, share) == pytest.approx(seconds, rel=0.1)


def test_classes_are_balanced_and_paired() -> None:
    """Catches a class that is never or seldom dealt, and pairs that do not cover the classes."""
    assert len(CLASSES) >= 8 and sorted(sum(PAIRS, ())) == sorted(CLASSES)
    labels = [x.label for i in range(120) for lane in plan_video(Settings(), "train", i).lanes for x in lane]
    counts = np.array([labels.count(name) for name in CLASSES])
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()


def test_timelines() -> None:
    """Catches instances outside the video, overlaps within an actor, no overlap between actors, empty videos."""
    num_overlapping = num_pairs = 0
    for i in range(200):
        plan = plan_video(Settings(), "test", i)
        duration_sec = plan.num_frames / 10
        instances = [x for lane in plan.lanes for x in lane]
        assert 3 <= len(instances) <= 16 and duration_sec >= 30
        for lane in plan.lanes:
            times = np.array([[x.start_sec, x.end_sec] for x in lane]).ravel()
            assert np.all(np.diff(times) > 0)
            assert np.all(np.diff(times)[1::2] >= synthetic_actions.MIN_GAP_SEC - 1e-9)
            assert times[0] >= synthetic_actions.MIN_GAP_SEC - 1e-9 and times[-1] < duration_sec
            assert all(0.75 <= x.tempo <= 1.25 for x in lane)
        num_pairs += len(plan.lanes) == 2
        if len(plan.lanes) == 2:
            num_overlapping += any(a.start_sec < b.end_sec and b.start_sec < a.end_sec
                                   for a in plan.lanes[0] for b in plan.lanes[1])
    assert 50 < num_pairs < 90 and num_overlapping > 0.5 * num_pairs


@pytest.mark.parametrize("length_sec", [0.6, 1.0, 4.0])
def test_speed_ramps(length_sec: float) -> None:
    """Catches a jump of speed at onset or end: compared with the numerical integral of a raised-cosine speed."""
    times = np.linspace(0, length_sec + 2, 4001)
    ramp = min(0.3, length_sec / 4)
    u = np.clip(np.minimum(times - 1, 1 + length_sec - times) / ramp, 0, 1)
    wanted = scipy.integrate.cumulative_trapezoid((1 - np.cos(np.pi * u)) / 2, times, initial=0)
    got = synthetic_actions.elapsed_at_full_speed(times, Instance(1.0, 1 + length_sec, CLASSES[0], 1.0))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_actor_moves_only_in_its_instances_and_never_jumps() -> None:
    """Catches a pose that is reset at an onset or an end, and motion outside the labelled segments."""
    for i in range(12):
        plan = plan_video(Settings(), "train", i)
        lane, times = plan.lanes[0], np.arange(0, plan.num_frames / 10, 0.01)
        path = synthetic_actions.move_actor(lane, times, np.random.default_rng(i))
        steps = np.abs(np.diff(path, axis=0))
        assert steps.max(axis=0)[[0, 1, 3]].max() < 0.2 and steps[:, 2].max() < 0.08
        inside = np.zeros(len(times) - 1, bool)
        for x in lane:
            now = (times[1:] > x.start_sec) & (times[:-1] < x.end_sec)
            inside |= now
            assert steps[now].sum() > 0.1
        assert np.all(steps[~inside] < 1e-12)
        assert np.abs(path[:, :2]).max() < 0.45  # it stays about its home


def draw_clean(label: str, seed: int, length_sec: float = 3.0, fps: int = 20) -> np.ndarray:
    """Grey pictures [F,128,128] of one actor alone on black, without shake and noise, during one action."""
    plan = synthetic_scene.Plan("one", "train", (seed, 0, 0), int(length_sec * fps), [
        [Instance(0.0, length_sec, label, 1.0)]])
    sprite = synthetic_scene.build_scene(plan, Settings(fps=fps)).actors[0]
    pictures = []
    for frame in range(plan.num_frames):
        picture = np.zeros((128, 128, 3), np.float32)
        synthetic_scene.paint(picture, sprite, frame, np.zeros(2))
        pictures.append(picture.mean(axis=-1))
    return np.stack(pictures)


def measure(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid [F,2] and area [F] by OpenCV's image moments."""
    moments = [cv2.moments((p > 2).astype(np.uint8), binaryImage=True) for p in pictures]
    area = np.array([m["m00"] for m in moments])
    return np.array([[m["m10"], m["m01"]] for m in moments]) / area[:, None], area


def turn_error(pictures: np.ndarray, degrees: float) -> float:
    """How badly each picture, turned clockwise on the screen about its centroid, matches the next one."""
    centroid, _ = measure(pictures)
    error = 0.0
    for i in range(5, len(pictures) - 5):
        matrix = cv2.getRotationMatrix2D(tuple(centroid[i]), -degrees, 1.0)  # OpenCV: positive is anti-clockwise
        matrix[:, 2] += centroid[i + 1] - centroid[i]
        turned = cv2.warpAffine(pictures[i], matrix, (128, 128))
        error += float(np.square(turned - pictures[i + 1]).mean())
    return error


@pytest.mark.parametrize("seed", range(4))
def test_pixels_show_the_label(seed: int) -> None:
    """Catches swapped directions in any pair, measured on pictures by registration and image moments."""
    step = 360 * synthetic_actions.SPIN_HZ / 20
    for label, sign in (("spin_clockwise", 1), ("spin_anticlockwise", -1)):
        pictures = draw_clean(label, seed)
        assert turn_error(pictures, sign * step) < 0.5 * turn_error(pictures, -sign * step)
    for label, sign in (("orbit_clockwise", 1), ("orbit_anticlockwise", -1)):
        centroid, _ = measure(draw_clean(label, seed))
        arm, move = (centroid - centroid.mean(axis=0))[:-1], np.diff(centroid, axis=0)
        swept = np.sum(arm[:, 0] * move[:, 1] - arm[:, 1] * move[:, 0])  # y points down: positive is clockwise
        assert sign * swept > 2 * np.pi * (0.8 * synthetic_actions.ORBIT_RADIUS * 128) ** 2
    for label, sign in (("swell_fast_shrink_slow", 1), ("shrink_fast_swell_slow", -1)):
        growth = sign * np.diff(np.log(measure(draw_clean(label, seed))[1]))
        assert growth.max() > 2 * -growth.min() > 0
    for label, sign in (("rise_fast_sink_slow", 1), ("sink_fast_rise_slow", -1)):
        climb = -sign * np.diff(measure(draw_clean(label, seed))[0][:, 1])
        assert climb.max() > 2 * -climb.min() > 0
    for label, sign in (("slide_left_fast_right_slow", 1), ("slide_right_fast_left_slow", -1)):
        leftwards = -sign * np.diff(measure(draw_clean(label, seed))[0][:, 0])
        assert leftwards.max() > 2 * -leftwards.min() > 0


@pytest.mark.parametrize("pair", PAIRS)
def test_single_frame_does_not_tell_the_pair_apart(pair: tuple[str, str]) -> None:
    """Catches a pose (place, turn, size) that is likelier in one class than in its twin; Kolmogorov-Smirnov."""
    rng = np.random.default_rng(5)
    samples = []
    for label in pair:
        poses = []
        for _ in range(1500):
            length = float(synthetic_actions.draw_durations(rng, 1)[0])
            lane = [Instance(0.0, length, label, rng.uniform(0.75, 1.25))]
            poses.append(synthetic_actions.move_actor(lane, np.array([rng.uniform(0, length)]), rng)[0])
        samples.append(np.array(poses))
    for axis in range(4):
        one, other = (s[:, axis] % (2 * np.pi) if axis == 2 else s[:, axis] for s in samples)
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-3, axis


def test_looks_do_not_depend_on_classes() -> None:
    """Catches a look, home, camera or distractor drawn from the stream of random numbers that the classes use."""
    plan = plan_video(Settings(), "train", 3)
    other = dataclasses.replace(plan, lanes=[
        [dataclasses.replace(x, label=CLASSES[CLASSES.index(x.label) - 5]) for x in lane] for lane in plan.lanes])
    one, two = (synthetic_scene.build_scene(p, Settings()) for p in (plan, other))
    for a, b in zip(one.actors, two.actors, strict=True):
        np.testing.assert_array_equal(a.patch, b.patch)
        assert a.diameter == b.diameter and not np.array_equal(a.path, b.path)
    for a, b in zip(one.distractors, two.distractors, strict=True):
        np.testing.assert_array_equal(a.path, b.path)
    for name in ("background", "pan", "shake", "gain"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_pictures_are_deterministic_and_subsets_differ() -> None:
    """Catches unseeded randomness, and test videos that repeat training videos."""
    def first_frame(seed: int, subset: str, index: int) -> np.ndarray:
        settings = dataclasses.replace(SMALL, seed=seed)
        return synthetic_scene.render_frame(
            synthetic_scene.build_scene(plan_video(settings, subset, index), settings), 7)

    base = first_frame(0, "train", 0)
    np.testing.assert_array_equal(base, first_frame(0, "train", 0))
    for other in ((0, "test", 0), (0, "train", 1), (1, "train", 0)):
        assert np.abs(base.astype(int) - first_frame(*other)).mean() > 5
    assert plan_video(SMALL, "train", 0).lanes != plan_video(SMALL, "test", 0).lanes


def test_files(tmp_path: pathlib.Path) -> None:
    """Catches another codec, lost frames, wrong durations or colours, and annotations that are refused."""
    synthetic.render_dataset(tmp_path, 2, 1, SMALL, processes=1)
    videos, exceptions = load_annotations(tmp_path / "annotations.json", CLASSES)
    assert exceptions == [] and [v.subset for v in videos] == ["train", "train", "test"]
    for number, video in enumerate(videos):
        path = tmp_path / "videos" / f"{video.name}.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 10
        decoded = decode_video(path, fps=10, size=32)
        assert len(decoded.frames) == round(video.duration_sec * 10)
        assert decoded.duration_sec == pytest.approx(video.duration_sec)
        assert video.annotations
        plan = plan_video(SMALL, video.subset, number % 2)
        scene = synthetic_scene.build_scene(plan, SMALL)
        drawn = np.stack([synthetic_scene.render_frame(scene, i) for i in range(plan.num_frames)])
        assert np.abs(decoded.frames.astype(int) - drawn).mean() < 8  # chroma is halved, and the noise is lost


def test_resume(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches finished videos rendered again, missing ones left out, annotations of a run that was cut short."""
    synthetic.render_dataset(tmp_path, 2, 1, SMALL, processes=1)
    before = (tmp_path / "annotations.json").read_bytes()
    (tmp_path / "annotations.json").unlink()
    (tmp_path / "videos" / "synthetic_train_0001.mp4").unlink()
    written: list[str] = []

    def fail(path: pathlib.Path, *args: object) -> None:
        written.append(path.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_video", fail)
        with pytest.raises(KeyboardInterrupt):
            synthetic.render_dataset(tmp_path, 2, 1, SMALL, processes=1)
    assert written == ["synthetic_train_0001.mp4"] and not (tmp_path / "annotations.json").exists()
    synthetic.render_dataset(tmp_path, 2, 1, SMALL, processes=1)
    assert (tmp_path / "annotations.json").read_bytes() == before
    assert len(list((tmp_path / "videos").iterdir())) == 3
    with pytest.raises(UserError, match="other settings"):
        synthetic.render_dataset(tmp_path, 2, 1, dataclasses.replace(SMALL, seed=1), processes=1)


def test_command_with_processes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches options that do not reach the renderer, and processes that render other pictures than one process."""
    options = ["--train-videos", "1", "--test-videos", "1", "--size", "32", "--min-sec", "3", "--max-sec", "4"]
    assert synthetic.main(["--output", str(tmp_path / "two"), "--processes", "2", *options]) == 0
    assert capsys.readouterr().out.strip().endswith("annotations.json")
    settings = json.loads((tmp_path / "two" / "settings.json").read_text())
    assert settings == {"renderer": synthetic.RENDERER, **dataclasses.asdict(SMALL)}
    synthetic.render_dataset(tmp_path / "one", 1, 1, SMALL, processes=1)
    for name in ("synthetic_train_0000.mp4", "synthetic_test_0000.mp4"):
        one, two = (decode_video(tmp_path / d / "videos" / name, 10, 32).frames for d in ("one", "two"))
        # libx264 does not promise the same bytes for the same pictures; another video differs by more than 15
        assert one.shape == two.shape and np.abs(one.astype(int) - two).mean() < 6
    annotations = [(tmp_path / d / "annotations.json").read_bytes() for d in ("one", "two")]
    assert annotations[0] == annotations[1]


@pytest.mark.parametrize("options", [["--size", "33"], ["--fps", "0"], ["--min-sec", "9", "--max-sec", "3"],
                                     ["--crf", "70"], ["--train-videos", "-1"], ["--processes", "0"], ["--seed", "-1"]])
def test_bad_options(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    """Catches a traceback or an hour of rendering for options that cannot work."""
    assert synthetic.main(["--output", str(tmp_path / "out"), *options]) == 2
    assert options[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_foreign_folder(tmp_path: pathlib.Path) -> None:
    """Catches videos of somebody else taken for finished ones."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "synthetic_train_0000.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="not rendered here"):
        synthetic.render_dataset(tmp_path, 1, 1, SMALL, processes=1)
