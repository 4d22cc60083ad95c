"""Copies of videos with labels: every frame at its own time, labels while their action lasts, nothing else changed."""

import itertools
import warnings
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from sptad_jax.data.video import write_video
from sptad_jax.errors import UserError
from sptad_jax.inference.render import COLOURS, draw_labels, find_font, label_tile, render_video

CLASSES = ("run", "long jump", "跑步 <b>")
GREY = 120


def row(label, start, end, score=0.9):
    return {"label": label, "score": score, "segment": [start, end]}


def read(path):
    """Times in seconds, RGB frames, width, height and frame rate of a file, by FFmpeg alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return *zip(*frames), stream.width, stream.height, float(stream.average_rate)


def write_grey(path, times_ms, width=96, height=64):
    """A lossless-looking grey video whose frames have these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), GREY, np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv444p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fps", [10, 24, 29.97])
def test_labels_stand_while_the_action_lasts(tmp_path, fps):
    """Frames lost, doubled or shifted; another rate or size; a label a frame early or late, or in another's colour."""
    write_video(tmp_path / "a.mp4", [np.full((64, 96, 3), GREY, np.uint8)] * 40, fps, crf=5)
    done = []
    found = [row("run", 0.5, 1.0), row("long jump", 0.7, 2.0, 0.3)]
    render_video(tmp_path / "a.mp4", tmp_path / "b.mp4", found, CLASSES, done.append)
    times, frames, width, height, rate = read(tmp_path / "b.mp4")
    before = read(tmp_path / "a.mp4")
    assert (width, height) == (96, 64) and rate == pytest.approx(before[4], rel=1e-3) and len(done) == 40
    np.testing.assert_allclose(times, before[0], atol=1e-3)
    line = 8
    for time, frame in zip(times, frames):
        rows = [frame[4 + k * (line + 2):4 + k * (line + 2) + line].astype(int) for k in range(2)]
        active = [r for r in found if r["segment"][0] <= time < r["segment"][1]]
        for k in range(2):
            bar, text = rows[k][3, 4], rows[k][:, 10:24]
            if k < len(active):
                colour = COLOURS[CLASSES.index(active[k]["label"])]
                assert np.abs(bar - colour).max() < 90 and text.min() < 60, (time, bar, colour)
            else:
                assert np.abs(rows[k] - GREY).max() < 40, time
        assert np.abs(frame[40:].astype(int) - GREY).max() < 12, "the rest of the picture stays"


def test_uneven_times_survive(tmp_path):
    """Telephones record with gaps: numbering frames would shift what follows. Times count from the first frame."""
    times = [400, 440, 480, 1480, 1500, 1900]
    write_grey(tmp_path / "a.mkv", times)
    render_video(tmp_path / "a.mkv", tmp_path / "b.mp4", [row("run", 1.05, 1.2)], CLASSES)
    found, frames, *_ = read(tmp_path / "b.mp4")
    np.testing.assert_allclose(np.subtract(found, found[0]), (np.array(times) - 400) / 1000, atol=1e-3)
    assert [bool(frame[:20].min() < 60) for frame in frames] == [False, False, False, True, True, False]


@pytest.mark.parametrize("width, height", [(1, 1), (33, 47), (16, 2), (640, 8)])
def test_any_size(tmp_path, width, height):
    """A crash for pictures smaller than a line of text, or for sides that the common form of H.264 does not have."""
    write_grey(tmp_path / "a.mkv", [0, 40, 80], width, height)
    render_video(tmp_path / "a.mkv", tmp_path / "b.mp4", [row("long jump", 0, 1)] * 12, CLASSES)
    _, frames, *size, _ = read(tmp_path / "b.mp4")
    assert size == [width + width % 2, height + height % 2] and len(frames) == 3


@pytest.mark.parametrize(
    "text", ["跑步 <b>", "прыжок", "قفز", "नाच", "🤸 \U000e0001", "a\nb\x1b[31m", "$\\frac{1}{0}$", ""])
def test_any_letters(text):
    """A crash, a warning or an empty tile for letters that a font lacks, control characters or formulas."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile = label_tile(text, 24, COLOURS[0])
    assert tile.shape[0] == 24 and tile.dtype == np.uint8
    assert (tile[:, 8:].max() > 200) == bool(text)


def test_font_has_the_letters():
    """Boxes or question marks in place of letters for which there is a font."""
    from matplotlib.ft2font import FT2Font

    for text in ("long jump", "прыжок", "άλμα"):
        assert {ord(c) for c in text} - {32} <= set(FT2Font(find_font(text)).get_charmap())
    different = [label_tile(text, 32, COLOURS[0]) for text in ("прыжок 1", "прыжки 1", "?????? 1")]
    assert all(a.shape != b.shape or (a != b).any() for a, b in itertools.combinations(different, 2))


def test_text_is_legible():
    """White on black, upright, the label in its own place: OpenCV matches the tile at the corner where it belongs."""
    image = np.random.default_rng(0).integers(0, 255, (360, 640, 3), np.uint8)
    draw_labels(image, [row("run", 0, 1), row("long jump", 0, 1, 0.25)], CLASSES)
    for k, text in enumerate(("run  0.90", "long jump  0.25")):
        tile = label_tile(text, 20, COLOURS[k])
        place = cv2.minMaxLoc(cv2.matchTemplate(image, tile, cv2.TM_SQDIFF))[2]
        assert place == (10, 10 + 22 * k)


def test_colon_in_a_name(tmp_path, monkeypatch):
    """A recording named by its time, beside its copy in the current folder: FFmpeg would take "12" for a protocol."""
    monkeypatch.chdir(tmp_path)
    write_grey(tmp_path / "a.mkv", [0, 40, 80]).rename("12:30.mkv")
    render_video("12:30.mkv", "12:30.mp4", [], CLASSES)
    assert len(read(tmp_path / "12:30.mp4")[1]) == 3


def test_failure_leaves_nothing(tmp_path):
    """Half a copy under the final name, or a traceback, where the source breaks off or the folder is missing."""
    write_grey(tmp_path / "a.mkv", range(0, 8000, 40))
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    for source, target, words in (("text.mp4", "b.mp4", "text.mp4"), ("cut.mkv", "b.mp4", "cut.mkv"),
                                  ("a.mkv", "absent/b.mp4", "absent")):
        with pytest.raises(UserError, match=words):
            render_video(tmp_path / source, tmp_path / target, [], CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "cut.mkv", "text.mp4"]
