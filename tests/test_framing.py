"""The square of motion: found under a moving camera, shown by the reader, kept out of the way where nothing moves."""

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptad_jax.data.framing import LEAST_SIDE, LOOK_SIZE, MARGIN, find_motion
from sptad_jax.data.video import FrameReader, iterate_frames, write_video
from tests.test_video import turn_clockwise

SCALE = 3  # pixels of a video to one of the pictures that are looked at


def draw(rng, height, width, area, count, shake=0.0, zoom=0.0):
    """Grey pictures [H, W] seen by a hand-held camera, before which one textured disc wanders all over `area` (top,
    left, side)."""
    room = cv2.resize(rng.integers(40, 216, (6, 8), np.uint8), (width + 40, height + 40), interpolation=cv2.INTER_CUBIC)
    top, left, side = area
    radius = side // 6
    pictures = []
    for i in range(count):
        scene = room.copy()
        y, x = (20 + start + radius + rng.uniform() * (side - 2 * radius) for start in (top, left))
        cv2.circle(scene, (round(x), round(y)), radius, int(rng.choice([0, 255])), -1)
        camera = np.float32([[1 + zoom * i / count, 0, -20], [0, 1 + zoom * i / count, -20]])
        camera[:, 2] += rng.uniform(-shake, shake, 2)
        pictures.append(cv2.warpAffine(scene, camera, (width, height)))
    return pictures


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(60, 60), (60, 80), (60, 107), (90, 60)]), st.floats(0.3, 0.7),
       st.sampled_from([(0.0, 0.0), (3.0, 0.0), (1.5, 0.05)]))
def test_motion_is_framed(seed, size, share, camera):
    """A square that follows the shaking camera instead of the disc, mixes up rows and columns, leaves the picture, cuts
    off what moves, leaves no room around it, or shows twice as much as it needs to."""
    rng = np.random.default_rng(seed)
    height, width = size
    side = round(share * LOOK_SIZE)
    area = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1)), side
    found = find_motion(draw(rng, height, width, area, 60, *camera))
    assert found is not None
    top, left, shown = (round(value * LOOK_SIZE, 6) for value in found)
    assert all(value == int(value) for value in (top, left, shown))
    assert 0 <= top <= height - shown and 0 <= left <= width - shown
    slack = 4 + camera[0] + LOOK_SIZE * camera[1]
    assert LEAST_SIDE * LOOK_SIZE - 0.5 <= shown <= max(MARGIN * (side + 2 * slack), LEAST_SIDE * LOOK_SIZE + 0.5)
    assert shown >= 0.9 * side
    for start, length, inner in ((top, shown, area[0]), (left, shown, area[1])):
        assert start <= inner + slack and start + length >= inner + side - slack


@pytest.mark.parametrize("shake", [0.0, 3.0])
def test_nothing_moves(shake):
    """A camera that shakes in an empty room, or one picture alone, taken for motion somewhere."""
    rng = np.random.default_rng(1)
    room = cv2.resize(rng.integers(60, 196, (8, 10), np.uint8), (120, 100), interpolation=cv2.INTER_CUBIC)
    shifts = rng.uniform(-shake, shake, (20, 2))
    pictures = [cv2.warpAffine(room, np.float32([[1, 0, x - 20], [0, 1, y - 20]]), (80, 60)) for x, y in shifts]
    assert find_motion(pictures) is None
    assert find_motion(pictures[:1]) is None
    assert find_motion([np.zeros((60, 80), np.uint8)] * 3) is None


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [32, 150])
def test_reader_shows_the_square(tmp_path, turned, size):
    """fit=motion from file to frames: a square at another place than was found, cut before the telephone's quarter
    turn, or of another size; enlarged (32 pixels of motion to 150) as well as shrunk. The oracle cuts the square out of
    the source's own pixels."""
    rng = np.random.default_rng(2)
    pictures = draw(rng, 60 * SCALE, 80 * SCALE, (20 * SCALE, 40 * SCALE, 34 * SCALE), 30)
    path = tmp_path / "a.mp4"
    write_video(path, [np.repeat(picture[..., None], 3, axis=-1) for picture in pictures], 5, crf=2)
    if turned:
        turn_clockwise(path)
    frames = np.stack(list(FrameReader(path, 5, size, fit="motion")))
    sources = [picture for _, _, picture in iterate_frames(path)]
    grey = [cv2.resize(picture[..., 0], (60, 80) if turned else (80, 60), interpolation=cv2.INTER_AREA)
            for picture in sources]
    found = find_motion(grey)
    assert found is not None and found[2] < 0.95
    top, left, side = (round(value * LOOK_SIZE * SCALE) for value in found)
    method = cv2.INTER_AREA if size < side else cv2.INTER_LINEAR
    squares = np.stack([cv2.resize(picture[top:top + side, left:left + side], (size, size), interpolation=method)
                        for picture in sources])
    assert frames.shape == squares.shape
    inner = np.abs(frames.astype(int) - squares)[:, 2:-2, 2:-2]
    assert inner.mean() < 5, "half a pixel of the small frames is within the rounding"


def test_reader_without_motion(tmp_path):
    """A still video, which fit=motion shows as fit=crop does."""
    picture = np.random.default_rng(3).integers(0, 256, (48, 80, 3), np.uint8)
    write_video(tmp_path / "a.mp4", [picture] * 6, 10)
    moving, central = (list(FrameReader(tmp_path / "a.mp4", 10, 32, fit=fit)) for fit in ("motion", "crop"))
    np.testing.assert_array_equal(moving, central)


def test_shape_that_changes(tmp_path):
    """Recordings of two shapes in one file (a telephone that was turned), at which the search ends with an error of
    NumPy, or the square lies beyond the later pictures."""
    rng = np.random.default_rng(4)
    path = tmp_path / "a.mpg"
    with open(path, "wb") as file:
        for height, width in ((48, 96), (64, 48)):
            pictures = draw(rng, height, width, (12, width - 34, 30), 12)
            part = tmp_path / "part.h264"
            with av.open(str(part), "w", format="h264") as container:
                stream = container.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
                for picture in pictures:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
                container.mux(stream.encode(None))
            file.write(part.read_bytes())
    frames = list(FrameReader(path, 25, 20, fit="motion"))
    assert len(frames) > 20 and {frame.shape for frame in frames} == {(20, 20, 3)}
