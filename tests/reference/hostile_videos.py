"""A corpus of files that may be named as videos: damaged, misnamed, absurd, and whole ones among them."""

import io
import json
import os
import pathlib
import zipfile
from fractions import Fraction

import av
import numpy as np

RECIPES = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx", "ts": "mpeg2video", "gif": "gif"}
LIKE = {"gif": "rgb8"}


def encode(
    path, codec="mpeg4", size=(24, 24), times=range(24), pixels="yuv420p", form=None, tick=Fraction(1, 10), rate=10
):
    """Frames of noise at these times in ticks."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = tick
        for time in times:
            image = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def whole_bytes(ending):
    buffer = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"whole.{os.getpid()}.{ending}"
    try:
        return encode(buffer, RECIPES[ending], pixels=LIKE.get(ending, "yuv420p")).read_bytes()
    finally:
        buffer.unlink(missing_ok=True)


def make_videos(folder: pathlib.Path) -> set[str]:
    """Fills the folder and returns the names of the files in which detection has to succeed."""
    folder.mkdir()
    whole = {ending: whole_bytes(ending) for ending in RECIPES}
    good = {f"good{k}.{ending}" for k, ending in enumerate(RECIPES)}
    for name in good:
        (folder / name).write_bytes(whole[name.split(".")[1]])
    _damage(folder, whole)
    _misname(folder, whole)
    good |= _odd_pictures(folder) | _odd_names(folder, whole["mp4"]) | {"really_mp4.gif", "really_gif.avi"}
    _odd_times(folder, whole["mp4"])
    _no_pictures(folder)
    _no_files(folder)
    return good


def _damage(folder, whole):
    for ending, content in whole.items():
        for k, share in enumerate((0.02, 0.2, 0.4, 0.6, 0.8, 0.97)):
            (folder / f"cut{k}.{ending}").write_bytes(content[:int(share * len(content))])
        for seed in range(9):
            rng, flipped = np.random.default_rng(seed), bytearray(content)
            head = len(content) if seed % 3 else min(len(content), 600)  # every third time in the header
            for place in rng.integers(0, head, 1 + 4 * (seed // 3)):
                flipped[place] ^= 1 << rng.integers(0, 8)
            (folder / f"flip{seed}.{ending}").write_bytes(flipped)
        (folder / f"middle.{ending}").write_bytes(content[len(content) // 3:])
        (folder / f"zeros.{ending}").write_bytes(content[:200] + bytes(len(content) - 200))
        (folder / f"twice.{ending}").write_bytes(content + content)


def _misname(folder, whole):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.mp4", b"x" * 1000)
    random = np.random.default_rng(1).bytes(5000)
    for name, content in {
        "empty.mp4": b"", "empty.gif": b"", "byte.avi": b"\0", "text.mp4": b"no video\n" * 100,
        "zip.mkv": archive.getvalue(), "json.mov": json.dumps({"results": {}}).encode(),
        "script.wmv": b"#!/bin/sh\nexit 1\n", "page.webm": b"<html></html>",
        "random.mp4": random, "random.mkv": random, "random.ts": random, "random.mpg": random, "random.flv": random,
        "track.mkv": b"WEBVTT\n\n00:00.000 --> 00:01.000\nx\n", "list.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "list.ts": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "sdp.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "really_mp4.gif": whole["mp4"], "really_gif.avi": whole["gif"],
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)


def _odd_pictures(folder):
    """Sizes and pixel formats at the ends of what there is."""
    plans = {
        "1x1.mkv": ("libx264", (1, 1), "yuv444p"), "1x1.avi": ("rawvideo", (1, 1), "bgr24"),
        "1x300.mkv": ("rawvideo", (1, 300), "yuv420p"), "999x1.mkv": ("rawvideo", (999, 1), "yuv420p"),
        "3x5.mkv": ("rawvideo", (3, 5), "yuv410p"), "8k.mkv": ("mjpeg", (7680, 4320), "yuvj420p"),
        "gray.mkv": ("ffv1", (24, 24), "gray"), "ten_bits.mkv": ("ffv1", (24, 24), "yuv444p10le"),
        "alpha.mkv": ("ffv1", (24, 24), "yuva420p"), "png.mov": ("png", (24, 24), "rgb24"),
        "one_frame.mp4": ("libx264", (24, 24), "yuv420p"),
    }  # fmt: skip
    for name, (codec, size, pixels) in plans.items():
        encode(folder / name, codec, size, range(1 if "8k" in name or "one" in name else 6), pixels)
    parts = [encode(folder / f"part.{k}.h264", "libx264", (side, side), form="h264").read_bytes()
             for k, side in enumerate((24, 64))]  # fmt: skip
    for k in range(2):
        (folder / f"part.{k}.h264").unlink()
    (folder / "other_size_later.mpg").write_bytes(b"".join(parts))
    return {*plans, "other_size_later.mpg"}


def _odd_names(folder, content):
    names = [b"not utf-8 \xff\xfe.mp4", b"two\nlines.mp4", b"\x1b[31mred.mp4", b"-v.mp4", "跑 步.mp4".encode(),
             b"n" * 240 + b".mp4", b"a'b\"c$(d)`e`.mp4", b"%s%n{0}.mp4"]  # fmt: skip
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(content)
    return {os.fsdecode(name) for name in names}


def _odd_times(folder, content):
    big = 10**7
    for name, times in {
        "leap": [0, 1, 2, big], "far": range(big, big + 9), "negative": range(-500, -490), "still": [0] * 6,
        "back": [9, 8, 7, 6, 5, 4], "leaps": [0, *range(3, 9 * big, big)], "to_and_fro": [0, 5, 1, 7, 2, 900],
    }.items():  # fmt: skip
        for ending in ("mkv", "mp4", "avi"):
            try:
                encode(folder / f"{name}.{ending}", times=times)
            except (av.error.FFmpegError, ValueError):  # the muxer refuses: what it wrote so far is hostile enough
                continue
    for box, offset, values in (  # version 0: flags, two dates, then time scale and duration, 32 bits each
        (b"mvhd", 16, (0, 1, 2**32 - 1)), (b"mdhd", 16, (0, 1, 2**32 - 1)), (b"mdhd", 20, (0, 1, 2**31)),
        (b"stts", 16, (0, 2**31 - 1)), (b"stsz", 12, (0, 2**32 - 1)), (b"tkhd", 80, (0, 2**32 - 1)),
    ):  # fmt: skip
        for value in values:
            changed = bytearray(content)
            place = changed.index(box) + offset
            changed[place:place + 4] = value.to_bytes(4, "big")
            (folder / f"{box.decode()}_{offset}_{value}.mp4").write_bytes(changed)
    for rate in (1, 1000):
        encode(folder / f"rate_{rate}.mkv", times=range(8), tick=Fraction(1, rate), rate=rate)


def _no_pictures(folder):
    samples = (np.random.default_rng(0).standard_normal((1, 8000)) / 9).astype(np.float32)
    for name, codec, form in (("sound.mp4", "aac", "mp4"), ("sound.mkv", "pcm_s16le", "matroska"),
                              ("sound.avi", "pcm_s16le", "wav"), ("sound.mov", "pcm_s16le", "mov")):  # fmt: skip
        with av.open(str(folder / name), "w", format=form) as container:
            stream = container.add_stream(codec, rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 8000
            resampler = av.AudioResampler(stream.codec_context.format, "mono", 8000)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    for ending in ("mp4", "mkv", "avi"):
        encode(folder / f"no_frames.{ending}", times=[])


def _no_files(folder):
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "absent.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "null.mp4").symlink_to("/dev/null")
    (folder / "endless.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "locked.mp4").write_bytes(b"x")
    (folder / "locked.mp4").chmod(0)
