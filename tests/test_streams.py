"""From a file to streams: flow on larger pictures than are stored."""

import cv2
import numpy as np
import pytest

from sptad_jax.data.optical_flow import compute_flow
from sptad_jax.data.streams import BLOCK_FRAMES, iterate_streams, read_streams
from sptad_jax.data.video import decode_video, write_video
from sptad_jax.errors import UserError

BOUND = 4.0


@pytest.fixture(scope="module")
def panning(tmp_path_factory):
    """A 96x96 video of smooth noise that moves 3 pixels to the right and 1.5 down in each of 12 frames."""
    path = tmp_path_factory.mktemp("streams") / "panning.mp4"
    ys, xs = np.mgrid[:96, :96].astype(float)
    waves = np.random.default_rng(0).uniform(0.08, 0.35, (12, 2)), np.random.default_rng(1).uniform(0, 6.28, 12)

    def picture(i):
        grey = sum(np.sin(a * (xs - 3.0 * i) + b * (ys - 1.5 * i) + c) for (a, b), c in zip(*waves))
        return np.repeat(np.clip(128 + 25 * grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)

    write_video(path, (picture(i) for i in range(12)), 10, crf=5)
    return path


def source(size, flow_size, method="dis"):
    return {"fps": 10.0, "max_frames": 0, "frame_size": size,
            "flow": {"method": method, "bound": BOUND, "size": flow_size}}


def in_pixels(flow):
    return flow.astype(float) / 255 * 2 * BOUND - BOUND


def test_flow_is_measured_in_stored_pixels(panning):
    """Catches a field that is averaged down but keeps the units of the larger picture, and swapped axes."""
    streams, fps, duration_sec = read_streams(panning, source(32, 96))
    assert streams["rgb"].shape == (12, 32, 32, 3) and streams["flow"].shape == (12, 32, 32, 2)
    inner = np.median(in_pixels(streams["flow"])[:-1, 8:-8, 8:-8], axis=(0, 1, 2))
    np.testing.assert_allclose(inner, [3.0 / 3, 1.5 / 3], atol=0.1)
    assert fps == 10.0 and duration_sec == pytest.approx(1.2)


def test_equal_sizes_are_decoding_and_flow(panning):
    """Catches pictures that are resized twice, or flow that is rounded on the way, where nothing is to be averaged."""
    streams, _, _ = read_streams(panning, source(48, 48))
    frames = decode_video(panning, 10, 48).frames
    np.testing.assert_array_equal(streams["rgb"], frames)
    np.testing.assert_array_equal(streams["flow"], compute_flow(frames, "dis", BOUND))


def test_without_flow_the_pictures_stay_the_same(panning):
    """Catches a one-stream detector that sees other pictures than it was trained on."""
    both, _, _ = read_streams(panning, source(32, 96))
    alone, _, _ = read_streams(panning, source(32, 96), with_flow=False)
    assert list(alone) == ["rgb"]
    np.testing.assert_array_equal(alone["rgb"], both["rgb"])


def test_smaller_flow_is_refused(panning):
    """Catches flow that would be blown up to the size of the frames."""
    with pytest.raises(UserError, match="raise the first"):
        read_streams(panning, source(48, 32))


@pytest.mark.parametrize("count", [1, 2, BLOCK_FRAMES, BLOCK_FRAMES + 1, BLOCK_FRAMES + 2, 2 * BLOCK_FRAMES + 1])
@pytest.mark.parametrize("size", [16, 24])
def test_blocks_are_the_whole(count, size):
    """Catches a frame or a field lost, doubled or computed over a border of blocks, and a wrong last field."""
    frames = np.random.default_rng(count).integers(0, 255, (count, 24, 24, 3), np.uint8)
    blocks = list(iterate_streams(iter(frames), source(size, 24)))
    assert max(len(block["rgb"]) for block in blocks) <= BLOCK_FRAMES + 1
    rgb = frames
    if size != 24:
        rgb = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames])
    np.testing.assert_array_equal(np.concatenate([block["rgb"] for block in blocks]), rgb)
    np.testing.assert_array_equal(np.concatenate([block["flow"] for block in blocks]),
                                  compute_flow(frames, "dis", BOUND, size))


def test_tvl1_has_no_memory(panning):
    """Catches a solver that starts from the field before: blocks of frames would give other flow than the whole."""
    frames = decode_video(panning, 10, 24).frames
    whole = compute_flow(frames, "tvl1", BOUND)
    np.testing.assert_array_equal(compute_flow(frames[5:8], "tvl1", BOUND)[:2], whole[5:7])
