"""Decoding against videos whose frames tell their own number."""

import os
import threading
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from sptad_jax.data import video as video_module
from sptad_jax.data.pictures import to_rgb
from sptad_jax.data.video import (
    FrameReader,
    decode_video,
    iterate_frames,
    read_frames_at,
    stated_duration,
    write_video,
)
from sptad_jax.errors import UserError


def grey_frames(levels, height=32, width=32):
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def level_of(frames):
    return frames.mean(axis=(1, 2, 3))


def turn_clockwise(path):
    """Has an mp4 say that it is to be shown after a quarter turn, as telephones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    for i, value in enumerate([0, 0x00010000, 0, 0xFFFF0000, 0]):
        data[matrix + 4 * i:matrix + 4 * i + 4] = value.to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("source_fps", [5, 10, 15, 24, 30, 29.9])
def test_frame_shown_at_each_time(tmp_path, source_fps):
    """Frame i must be what is shown at i / 10 s: catches a drift, an off-by-one or a wrong count at any source rate."""
    levels = 40 + 3 * np.arange(50)
    write_video(tmp_path / "a.mp4", grey_frames(levels), source_fps, crf=0)
    video = decode_video(tmp_path / "a.mp4", fps=10, size=32)
    duration = 50 / source_fps
    assert video.duration_sec == pytest.approx(duration, abs=2e-3)
    times = np.arange(np.ceil(duration * 10 - 1e-2)) / 10
    assert video.frames.shape == (len(times), 32, 32, 3) and video.frames.dtype == np.uint8 and video.fps == 10
    shown = np.floor((times + 1e-3) * source_fps).astype(int)  # time stamps count to the millisecond
    np.testing.assert_allclose(level_of(video.frames), levels[shown], atol=1.1)


def test_colour_and_place(tmp_path):
    """Catches swapped channels, a flipped picture, and cropping in place of squeezing a wide picture."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32] = (220, 30, 30)
    image[16:, 32:] = (30, 30, 220)
    write_video(tmp_path / "a.mp4", [image] * 5, 10, crf=5)
    frame = decode_video(tmp_path / "a.mp4", fps=10, size=16).frames[2].astype(int)
    np.testing.assert_allclose(frame[3, 3], (220, 30, 30), atol=12)
    np.testing.assert_allclose(frame[12, 12], (30, 30, 220), atol=12)
    np.testing.assert_allclose(frame[3, 12], (0, 0, 0), atol=12)


@pytest.mark.parametrize("height, width", [(48, 80), (80, 48), (48, 48)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_central_square(tmp_path, height, width, turned, shrink):
    """fit=crop: a square that is not in the middle, cut along the wrong side, squeezed, or cut before the telephone's
    turn. Against the whole pictures, sliced and averaged by NumPy."""
    grey = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8), (width, height))
    picture = np.repeat(grey[..., None], 3, axis=-1)  # colours are stored coarser
    path = tmp_path / "a.mp4"
    write_video(path, [picture] * 3, 10, crf=5)
    if turned:
        turn_clockwise(path)
    (_, _, whole), *_ = iterate_frames(path)
    assert whole.shape[:2] == ((width, height) if turned else (height, width))
    top, left = ((side - 48) // 2 for side in whole.shape[:2])
    size = 48 // shrink
    square = whole[top:top + 48, left:left + 48].reshape(size, shrink, size, shrink, 3).mean((1, 3))
    (frame, *_) = FrameReader(path, 10, size, fit="crop")
    assert frame.shape == (size, size, 3) and frame.flags.c_contiguous
    np.testing.assert_allclose(frame, square, atol=2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("aspect, radii", [(Fraction(2), (12, 24)), (Fraction(64, 45), (15, 21.3)),
                                           (Fraction(1, 2), (24, 12)), (Fraction(1000), (12, 24))])  # fmt: skip
def test_pixels_that_are_not_square(tmp_path, aspect, radii, turned):
    """A DVD's picture squeezed by fit=crop, drawn out along the wrong side, or changed by fit=stretch; a picture of
    gigabytes for a header that is damaged. A disc on the screen is stored as an ellipse with the radii x, y."""
    x, y = np.meshgrid(np.arange(96) - 47.5, np.arange(64) - 31.5)
    disc = np.repeat((np.hypot(x / radii[0], y / radii[1]) < 1)[..., None] * np.uint8(200) + np.uint8(20), 3, axis=-1)
    path = tmp_path / "a.mp4"
    write_video(tmp_path / "square.mp4", [disc] * 3, 10, crf=0)
    with av.open(str(tmp_path / "square.mp4")) as plain, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(plain.streams.video[0])
        stream.sample_aspect_ratio = aspect
        for packet in plain.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    if turned:
        turn_clockwise(path)
        turn_clockwise(tmp_path / "square.mp4")
    stretched, expected = (next(iter(FrameReader(p, 10, 32))) for p in (path, tmp_path / "square.mp4"))
    np.testing.assert_array_equal(stretched, expected)
    bright = next(iter(FrameReader(path, 10, 64, fit="crop")))[..., 0] > 120
    sides = bright.any(axis=1).sum(), bright.any(axis=0).sum()  # height, width
    if aspect == 1000:
        assert sides == ((24, 48) if turned else (48, 24))
    else:
        assert abs(int(sides[0]) - int(sides[1])) <= 2 and min(sides) > 20
        assert (bright == bright[:, ::-1]).mean() > 0.97, "in the middle"


def exact_picture(frame, size, matrix, full_range):
    """In float64: the standard's formula on every pixel, colours repeated over their block, then the mean of areas."""
    y, u, v = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, :p.width].astype(float)
               for p in frame.planes)
    u, v = (np.kron(p, np.ones((y.shape[0] // p.shape[0], y.shape[1] // p.shape[1]))) - 128 for p in (u, v))
    if not full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]  # ITU-R BT.601, BT.709
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    rgb = np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=-1)
    rows, columns = (length // size for length in y.shape)
    return rgb.clip(0, 255).reshape(size, rows, size, columns, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(("pixels", "full_range"), [("yuv420p", False), ("yuv422p", False), ("yuv444p", False),
                                                    ("yuvj420p", True), ("yuv420p", True), ("nv12", False)])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("factor", [2, 6])
def test_pixels_are_exact(pixels, full_range, matrix, factor):
    """To half a level: catches a wrong matrix or range, swapped or shifted planes, colours that two pixels share, and
    rounding down, each an option that FFmpeg's scaler leaves off unless asked."""
    size = 24
    smooth = np.random.default_rng(0).integers(60, 200, (6, 6, 3)).astype(np.float32)
    image = cv2.resize(smooth, (size * factor, size * factor), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pixels, dst_colorspace={"bt601": "itu601", "bt709": "itu709"}[matrix],
        dst_color_range="JPEG" if full_range else "MPEG")
    frame.colorspace = {"bt601": 5, "bt709": 1}[matrix]  # as decoders set it: AVCOL_SPC_BT470BG, AVCOL_SPC_BT709
    frame.color_range = 2 if full_range else 1
    ours = to_rgb(frame, VideoReformatter(), size, size).astype(float)
    other = frame.reformat(format="yuv420p") if pixels == "nv12" else frame
    gap = ours - exact_picture(other, size, matrix, full_range)
    assert np.abs(gap).max() < 0.6 and abs(gap.mean()) < 0.1, (np.abs(gap).max(), gap.mean())


def test_shrinking_averages(tmp_path):
    """Picking single pixels out of fine stripes gives aliases; their mean is 128."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    write_video(tmp_path / "a.mp4", [image] * 3, 10, crf=0)
    frame = decode_video(tmp_path / "a.mp4", fps=10, size=16).frames[0]
    np.testing.assert_allclose(frame, 128, atol=3)


def test_variable_frame_rate(tmp_path):
    """Telephones record with gaps; counting frames in place of reading time stamps would shift the actions after."""
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for image, pts in zip(grey_frames([50, 100, 150, 200]), [0, 1, 11, 12]):  # a second passes in between
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    levels = level_of(decode_video(path, fps=10, size=32).frames)
    np.testing.assert_allclose(levels[:12], [50] + [100] * 10 + [150], atol=1.1)
    assert levels[12] == pytest.approx(200, abs=1.1)


def test_max_frames(tmp_path):
    """ActivityNet's fixed length: the rate falls to cover a long video, and a short one is never sampled up."""
    levels = 40 + 2 * np.arange(100)
    write_video(tmp_path / "a.mp4", grey_frames(levels), 25, crf=0)
    video = decode_video(tmp_path / "a.mp4", fps=10, size=32, max_frames=40)
    assert len(video.frames) == 40 and video.fps == pytest.approx(10, rel=1e-3)
    np.testing.assert_allclose(level_of(video.frames), levels[(np.arange(40) * 2.5 + 1e-3).astype(int)], atol=1.1)
    short = decode_video(tmp_path / "a.mp4", fps=10, size=32, max_frames=768)
    assert len(short.frames) == 100 and short.fps == pytest.approx(25, rel=1e-3)


def test_turned_video(tmp_path):
    """A telephone held upright stores a lying picture and a matrix; a person lying on the side is another action."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32] = 255  # stored top left, so shown top right after a quarter turn clockwise
    write_video(tmp_path / "a.mp4", [image] * 4, 10)
    turn_clockwise(tmp_path / "a.mp4")
    frame = decode_video(tmp_path / "a.mp4", fps=10, size=32).frames[1]
    assert frame[8, 24].min() > 200 and max(frame[8, 8].max(), frame[24, 8].max(), frame[24, 24].max()) < 50
    assert read_frames_at(tmp_path / "a.mp4", [0.0], height=64)[0].shape == (64, 32, 3)


def test_colon_in_a_name(tmp_path, monkeypatch):
    """A recording named by its time, in the current folder: FFmpeg would take the beginning for a protocol."""
    monkeypatch.chdir(tmp_path)
    write_video("12:30.mp4", grey_frames([10] * 4), 10)
    assert os.listdir() == ["12:30.mp4"]
    assert len(decode_video("12:30.mp4", fps=10, size=16).frames) == 4
    assert stated_duration("12:30.mp4") == pytest.approx(0.4)


def test_gif(tmp_path):
    """DeepMind's sample clips are GIFs, without a stated duration for the last picture."""
    path = tmp_path / "a.gif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb8"
        for image in grey_frames([0, 255] * 4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="rgb8")))
        container.mux(stream.encode(None))
    levels = level_of(decode_video(path, fps=10, size=32).frames)
    assert len(levels) == 8 and (levels[::2] < 20).all() and (levels[1::2] > 235).all()


def test_read_frames_at(tmp_path):
    """Thumbnails of a report: right moment whatever the order of times, own aspect ratio, last frame beyond the end."""
    levels = 40 + 4 * np.arange(40)
    write_video(tmp_path / "a.mp4", grey_frames(levels, 32, 64), 10, crf=0)
    pictures = read_frames_at(tmp_path / "a.mp4", [3.05, 0.0, 99.0, 1.0], height=16)
    assert [p.shape for p in pictures] == [(16, 32, 3)] * 4
    np.testing.assert_allclose([p.mean() for p in pictures], levels[[30, 0, 39, 10]], atol=1.1)


def test_files_that_cannot_be_read(tmp_path):
    """Missing, empty, garbage, audio-less text, a folder: one sentence that names the file, never a traceback."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    for name in ("none.mp4", "empty.mp4", "garbage.mp4", "folder.mp4"):
        with pytest.raises(UserError, match=name):
            decode_video(tmp_path / name, fps=10, size=32)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_truncated_files(tmp_path, ending):
    """A download cut short whose header still states the full length must not pass as a short video."""
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "25"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(decode_video(path, fps=10, size=32).frames) == 60
    data = path.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"cut.{ending}"):
        decode_video(cut, fps=10, size=32)


def test_write_video_gives_one_file_on_any_processor(tmp_path):
    """Catches x264's vector code showing in the file: on processors with AVX-512 small videos, and what is trained on
    them, differed from run to run. The oracle is x264 without vector code."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (128, 128, 3), np.uint8), (0, 0), 3)
    steps = np.cumsum(rng.integers(-2, 3, (90, 2)), axis=0) % 64
    frames = [np.clip(scene[y : y + 64, x : x + 64] + rng.normal(0, 4, (64, 64, 3)), 0, 255).astype(np.uint8)
              for y, x in steps]
    files = []
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", frames, 10)
        files.append((tmp_path / f"{i}.mp4").read_bytes())
    with av.open(str(tmp_path / "slow.mp4"), "w") as container:
        options = {"crf": "18", "preset": "veryfast", "x264-params": "asm=0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 64
        stream.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    files.append((tmp_path / "slow.mp4").read_bytes())
    assert len(set(files)) == 1


def test_write_video_is_whole_or_absent(tmp_path):
    """An encoder stopped half-way must leave neither a broken video nor litter."""
    def frames():
        yield from grey_frames([10, 20])
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "a.mp4", frames(), 10)
    assert list(tmp_path.iterdir()) == []


def test_real_video(shared):
    """355 frames at 19.62 fps are 18.09 s, so 181 frames at 10 fps; catches a rate taken from the wrong header."""
    video = decode_video(shared / "videos" / "v_GGSY1Qvo990.mp4", fps=10, size=48)
    assert len(video.frames) == 181 and video.duration_sec == pytest.approx(18.09, abs=0.02)
    assert 20 < video.frames.mean() < 235 and video.frames.std() > 10


@pytest.mark.parametrize("times, words", [([0, 5, 6105], "leap by 61[0-9] s"), ([0, 5, 5990], None),
                                          ([3000, 3005, 3010], None)])  # fmt: skip
def test_leaps_in_time(tmp_path, times, words):
    """Damaged time stamps whose picture is repeated for days; slow slides, or a recording that starts late, refused."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = 0
        for image, pts in zip(grey_frames([50, 100, 150]), times):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if words:
        with pytest.raises(UserError, match=words):
            decode_video(tmp_path / "a.mkv", fps=10, size=8)
    else:
        video = decode_video(tmp_path / "a.mkv", fps=1, size=8)
        assert video.duration_sec == pytest.approx((times[-1] - times[0]) / 10, abs=0.5)
        own = list(iterate_frames(tmp_path / "a.mkv"))
        np.testing.assert_allclose([start for start, _, _ in own], (np.array(times) - times[0]) / 10, atol=2e-3)
        np.testing.assert_allclose(level_of(np.stack([image for *_, image in own])), [50, 100, 150], atol=3)


def test_stated_duration(tmp_path):
    """A progress bar without end, an error before the file is even read, or a wait for someone to write to a pipe."""
    write_video(tmp_path / "a.mp4", grey_frames([50] * 25), 10)
    (tmp_path / "text.mp4").write_text("no video")
    assert stated_duration(tmp_path / "a.mp4") == pytest.approx(2.5)
    assert [stated_duration(tmp_path / name) for name in ("text.mp4", "absent.mp4", ".")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("count", [0, 1, video_module.AHEAD, 3 * video_module.AHEAD])
def test_reading_ahead_changes_nothing(count):
    """Items lost, doubled or out of order at the end; an error that comes before the good items, or never."""

    def items():
        yield from range(count)
        raise UserError("cut short")

    assert list(video_module._ahead(iter(range(count)))) == list(range(count))
    found = []
    with pytest.raises(UserError, match="cut short"):
        for item in video_module._ahead(items()):
            found.append(item)
    assert found == list(range(count))


def test_reading_ahead_is_bounded_and_ends():
    """A film of hours decoded into memory while its first picture is used; a thread that outlives its reader."""
    made, before = [], threading.active_count()
    reader = video_module._ahead(made.append(i) or i for i in range(1000))
    assert next(reader) == 0
    reader.close()
    assert len(made) <= video_module.AHEAD + 1 and threading.active_count() == before
