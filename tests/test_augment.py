"""Augmentation on the device against slicing in NumPy."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from sptad_jax.config import DataConfig
from sptad_jax.data.augment import _resize, prepare

B, F, SIZE = 6, 4, 36


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"rgb": rng.integers(0, 256, (B, F, SIZE, SIZE, 3), np.uint8),
            "flow": rng.integers(0, 256, (B, F, SIZE, SIZE, 2), np.uint8),
            "num_frames": np.array([4, 4, 4, 3, 1, 4], np.int32), "labels": np.zeros((B, 2), np.int32)}


jitted = jax.jit(prepare, static_argnames=("config", "train"))


def run(batch, config, seed=0, train=True):
    key = jax.random.key(seed) if train else None
    out = jitted(batch, config=config, key=key, train=train)
    return {name: np.asarray(value) for name, value in out.items()}


def scale(frames):
    return frames.astype(np.float64) / 255 * 2 - 1


def find_draw(frames, output, crop):
    """The (y, x, flipped) that turns the first of frames [F, H, W, C] into that of the output, by trying all."""
    frames, output = scale(frames[0]), output[0]
    for y in range(SIZE - crop + 1):
        for x in range(SIZE - crop + 1):
            square = frames[y:y + crop, x:x + crop]
            for flipped in (False, True):
                if np.abs((square[:, ::-1] if flipped else square) - output).max() < 1e-6:
                    return y, x, flipped
    raise AssertionError("no crop of the frames gives this output")


def test_central_crop_at_test(batch):
    """Test inputs: the middle, unflipped, whatever the training options; also without a key."""
    out = run(batch, DataConfig(crop_size=32, flip_prob=1.0), train=False)
    assert set(out) == {"rgb", "flow"}
    for name, channels in (("rgb", 3), ("flow", 2)):
        assert out[name].shape == (B, F, 32, 32, channels) and out[name].dtype == np.float32
        np.testing.assert_allclose(out[name][0], scale(batch[name][0, :, 2:34, 2:34]), atol=1e-6)


def test_one_draw_shared(batch):
    """RGB and flow of a window must be cut and flipped alike in all frames, or motion and picture disagree."""
    draws = set()
    for seed in range(4):
        out = run(batch, DataConfig(crop_size=32), seed)
        for i in (0, 1, 2, 5):
            y, x, flipped = find_draw(batch["rgb"][i], out["rgb"][i], 32)
            for name in ("rgb", "flow"):
                square = scale(batch[name][i, :, y:y + 32, x:x + 32])
                np.testing.assert_allclose(out[name][i], square[:, :, ::-1] if flipped else square, atol=1e-6)
            draws.add((y, x, flipped))
    assert len(draws) > 10  # windows and steps differ
    assert {flipped for *_, flipped in draws} == {False, True}
    assert len({y for y, *_ in draws}) > 2 and len({x for _, x, _ in draws}) > 2


def test_every_offset_occurs(batch):
    """The last row and column must be within reach: offsets are 0..SIZE-crop, both ends included."""
    config = DataConfig(crop_size=34, flip_prob=0.0)
    draws = {find_draw(batch["rgb"][i], run(batch, config, seed)["rgb"][i], 34) for seed in range(12) for i in (0, 1)}
    assert {y for y, *_ in draws} == {0, 1, 2} and {x for _, x, _ in draws} == {0, 1, 2}
    assert not any(flipped for *_, flipped in draws)


@pytest.mark.parametrize("train", [False, True])
def test_crop_as_large_as_frames(batch, train):
    """No room to crop: nothing may be cut."""
    out = run(batch, DataConfig(crop_size=SIZE, flip_prob=1.0), train=train)["rgb"]
    np.testing.assert_allclose(out[0], scale(batch["rgb"][0, :, :, ::-1 if train else 1]), atol=1e-6)


def test_fixed_crop_in_training(batch):
    """random_crop=False: the central crop in training too."""
    out = run(batch, DataConfig(crop_size=32, random_crop=False, flip_prob=0.0))["flow"]
    np.testing.assert_allclose(out[0], scale(batch["flow"][0, :, 2:34, 2:34]), atol=1e-6)


def test_flip_negates_flow_x(batch):
    """In a mirror, motion to the right is motion to the left: x changes sign, y stays; unflipped windows do not."""
    config = DataConfig(crop_size=SIZE, flip_prob=1.0, flip_negates_flow_x=True)
    out = run(batch, config)
    mirrored = scale(batch["flow"][0, :, :, ::-1])
    np.testing.assert_allclose(out["flow"][0], mirrored * [-1, 1], atol=1e-6)
    np.testing.assert_allclose(out["rgb"][0], scale(batch["rgb"][0, :, :, ::-1]), atol=1e-6)
    still = run(batch, DataConfig(crop_size=SIZE, flip_prob=0.0, flip_negates_flow_x=True))
    np.testing.assert_allclose(still["flow"][0], scale(batch["flow"][0]), atol=1e-6)


@pytest.mark.parametrize(
    ("pad_value", "train", "expected"),
    [("zero", True, 0), ("zero", False, 0), ("minus_one", True, -1), ("minus_one", False, -1), ("afsd", True, -1),
     ("afsd", False, 0)])
def test_padding(batch, pad_value, train, expected):
    """Frames after the end get the value after scaling; real frames are not touched."""
    out = run(batch, DataConfig(crop_size=32, pad_value=pad_value), train=train)
    for name in ("rgb", "flow"):
        assert (out[name][3, 3:] == expected).all() and (out[name][4, 1:] == expected).all()
        assert np.unique(out[name][4, 0]).size > 100 and np.unique(out[name][3, 2]).size > 100


def test_color_jitter_is_one_affine_map_a_window(batch):
    """Catches a draw per frame (flicker), a map that reaches the flow or the padding, and two windows alike."""
    config = DataConfig(crop_size=SIZE, flip_prob=0.0, color_jitter=0.1)
    narrow = {**batch, "rgb": 96 + batch["rgb"] // 4}  # far from the ends, so that nothing is cut
    out = run(narrow, config)
    np.testing.assert_allclose(out["flow"][0], scale(batch["flow"][0]), atol=1e-6)
    assert (out["rgb"][4, 1:] == 0).all()
    maps = []
    for i in (0, 1):
        before = scale(narrow["rgb"][i]).reshape(-1, 3)
        design = np.concatenate([before, np.ones((len(before), 1))], axis=1)
        solution, residual, *_ = np.linalg.lstsq(design, out["rgb"][i].reshape(-1, 3), rcond=None)
        assert residual.max() < 1e-6
        maps.append(solution)
    assert 0.02 < np.abs(maps[0][:3] - np.eye(3)).max() < 0.5 and np.abs(maps[0][3]).max() > 0.005
    assert np.abs(maps[0] - maps[1]).max() > 0.02
    means = [run(narrow, config, seed)["rgb"][0].mean() for seed in range(40)]
    assert 0.02 < np.std(means) < 0.2  # the mean of three offsets of deviation 0.1 has 0.058


def test_color_jitter_stays_in_range_and_out_of_testing(batch):
    """Catches values beyond [-1, 1], which no byte gives, and jittered test inputs."""
    config = DataConfig(crop_size=SIZE, color_jitter=2.0)
    assert np.abs(run(batch, config)["rgb"]).max() == 1
    np.testing.assert_allclose(run(batch, config, train=False)["rgb"][0], scale(batch["rgb"][0]), atol=1e-6)


def test_resize_against_scipy(batch):
    """Squares shifted by half a pixel, height taken for width, borders that fade to grey."""
    frames = scale(batch["rgb"][:2]).astype(np.float32)
    boxes = np.array([[1.5, 0.0, 30.25, 36.0, 0, 0], [0.0, 7.0, 36.0, 20.5, 0, 0]], np.float32)
    found = np.asarray(_resize(frames, boxes, 24))
    for window, (y, x, height, width, *_), out in zip(frames, boxes, found):
        steps = (np.arange(24) + 0.5) / 24
        grid = np.meshgrid(y + steps * height - 0.5, x + steps * width - 0.5, indexing="ij")
        for frame, channel in ((0, 0), (3, 2)):
            wanted = scipy.ndimage.map_coordinates(window[frame, :, :, channel], grid, order=1, mode="nearest")
            np.testing.assert_allclose(out[frame, :, :, channel], wanted, atol=1e-5)


@pytest.mark.parametrize("lean", [(0.2, 0.0), (0.0, -0.25), (0.15, 0.1), (-0.12, 0.12)])
def test_leaning_boxes_against_scipy(lean):
    """A lean about a corner in place of the middle, the two axes taken for one another, a sign; within the frames and
    beyond their borders, on pictures so smooth that one lookup of four neighbours and two of two give the same."""
    y, x = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    picture = (np.sin(x / 7) * np.cos(y / 9 + 1)).astype(np.float32)
    top, left, height, width = 7.5, 5.25, 20.0, 24.5
    u, v = np.meshgrid((np.arange(20) + 0.5) / 20 - 0.5, (np.arange(20) + 0.5) / 20 - 0.5, indexing="ij")
    grid = [top + height / 2 - 0.5 + height * (u + lean[0] * v), left + width / 2 - 0.5 + width * (v + lean[1] * u)]
    assert min(grid[0].min(), grid[1].min()) > 0 and max(grid[0].max(), grid[1].max()) < SIZE - 1
    box = np.array([[top, left, height, width, *lean]], np.float32)
    out = np.asarray(_resize(picture[None, None, ..., None], box, 20))[0, 0, ..., 0]
    wanted = scipy.ndimage.map_coordinates(picture, grid, order=3)
    assert np.abs(wanted - picture[7:27, 7:27]).max() > 0.1
    np.testing.assert_allclose(out, wanted, atol=0.01)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_shear_jitter(flip):
    """Flow that is not turned with its picture, or by the transpose: a point of the frame and where its flow takes it
    must be as far apart in the output as the flow there says. Leans out of their range, alike in all windows or both
    axes; sizes that change unasked; test windows that lean. Read off pictures whose bytes are coordinates."""
    count, size, crop = 48, SIZE, 20
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    rgb = np.broadcast_to(np.stack([x, y, x], -1).astype(np.uint8) * 5, (count, 1, size, size, 3))
    flow = np.broadcast_to(np.array([127 + 30, 127 - 50], np.uint8), (count, 1, size, size, 2))
    config = DataConfig(crop_size=crop, flip_prob=flip, flip_negates_flow_x=True, shear_jitter=0.2)
    batch = {"rgb": rgb, "flow": flow, "num_frames": np.full(count, 1, np.int32)}
    out = run(batch, config)
    place = (out["rgb"][:, 0, ..., :2] + 1) * 127.5 / 5  # (x, y) of the frame, of each pixel
    steps = [(place[:, 10, 11] - place[:, 10, 10]), (place[:, 11, 10] - place[:, 10, 10])]  # a column, a row further on
    vector = (out["flow"][:, 0, 10, 10] * 127.5)[:, :, None]  # in pixels of the output
    moved = vector[:, 0] * steps[0] + vector[:, 1] * steps[1]
    np.testing.assert_allclose(moved, np.broadcast_to([29.5, -50.5], (count, 2)), rtol=1e-3)
    sign = -1 if flip else 1
    np.testing.assert_allclose([steps[0][:, 0], steps[1][:, 1]], [[sign] * count, [1] * count], atol=1e-3)
    leans = np.array([sign * steps[0][:, 1], steps[1][:, 0]])
    assert np.abs(leans).max() <= 0.2 + 1e-3 and (np.std(leans, axis=1) > 0.08).all()
    assert abs(np.corrcoef(leans)[0, 1]) < 0.5
    still = run(batch, config, train=False)["rgb"]
    np.testing.assert_allclose(still[0, 0], scale(rgb[0, 0, 8:28, 8:28]), atol=1e-6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_size_jitter(flip):
    """Sides that leave their range or the frames, or are always square; a draw per frame or stream; flow that keeps its
    length where the picture grows, or whose x grows by the height. Read off pictures whose bytes are coordinates."""
    count, size = 64, SIZE
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    rgb = np.broadcast_to(np.stack([x, y, x], -1).astype(np.uint8) * 5, (count, 2, size, size, 3))
    flow = np.broadcast_to(np.array([127 + 20, 127 - 30], np.uint8), (count, 2, size, size, 2))
    config = DataConfig(crop_size=24, flip_prob=flip, flip_negates_flow_x=True, size_jitter=0.5)
    out = run({"rgb": rgb, "flow": flow, "num_frames": np.full(count, 2, np.int32)}, config)
    np.testing.assert_allclose(out["rgb"][:, 0], out["rgb"][:, 1], atol=1e-6)
    pixels = (out["rgb"][:, 0] + 1) * 127.5 / 5
    assert pixels.min() > -1e-3 and pixels.max() < size - 1 + 1e-3
    middle = slice(4, 20)  # the borders of the frames repeat
    sign = -1 if flip else 1
    widths = sign * np.diff(pixels[:, 12, middle, 0], axis=1).mean(axis=1) * 24
    heights = np.diff(pixels[:, middle, 12, 1], axis=1).mean(axis=1) * 24
    for sides in (widths, heights):
        assert sides.min() > 24 * np.exp(-0.5) - 1e-2 and sides.max() < size + 1e-2
        assert sides.min() < 18 and sides.max() > 35.9 and np.std(sides) > 2
    assert np.abs(widths - heights).max() > 4
    np.testing.assert_allclose(out["flow"][:, 1, 5, 5, 0], sign * 19.5 / 127.5 * 24 / widths, rtol=1e-3)
    np.testing.assert_allclose(out["flow"][:, 0, 9, 7, 1], -30.5 / 127.5 * 24 / heights, rtol=1e-3)
    places = []
    for channel, sides in ((0, widths), (1, heights)):
        first = pixels[:, 11:13, 11:13, channel].mean(axis=(1, 2)) + 0.5 - sides / 2
        places.append(first / np.maximum(size - sides, 1e-6))
    roomy = np.minimum(size - widths, size - heights) > 4
    assert roomy.sum() > 20 and abs(np.corrcoef(np.array(places)[:, roomy])[0, 1]) < 0.6
    assert all(np.ptp(place[roomy]) > 0.6 for place in places)
    still = run({"rgb": rgb, "num_frames": np.full(count, 2, np.int32)}, config, train=False)["rgb"]
    np.testing.assert_allclose(still[0, 0], scale(rgb[0, 0, 6:30, 6:30]), atol=1e-6)


def test_range(batch):
    """Bytes 0 and 255 are exactly -1 and 1."""
    frames = np.zeros((1, 1, 32, 32, 3), np.uint8)
    frames[..., 1] = 255
    out = run({"rgb": frames, "num_frames": np.array([1], np.int32)}, DataConfig(crop_size=32), train=False)["rgb"]
    assert out[..., 0].max() == -1 and out[..., 1].min() == 1


def test_same_key_same_draw(batch):
    """A resumed run must repeat its augmentation bit for bit."""
    config = DataConfig(crop_size=32)
    np.testing.assert_array_equal(run(batch, config, 5)["rgb"], run(batch, config, 5)["rgb"])
    assert (run(batch, config, 5)["rgb"] != run(batch, config, 6)["rgb"]).any()


def test_misuse(batch):
    """A crop larger than the frames, or training without a key, must not end in a clamped slice."""
    with pytest.raises(ValueError, match="crop_size 64"):
        prepare(batch, DataConfig(crop_size=64), None, False)
    with pytest.raises(ValueError, match="random key"):
        prepare(batch, DataConfig(crop_size=32), None, True)
