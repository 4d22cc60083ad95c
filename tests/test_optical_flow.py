"""Flow of pictures that move by a known amount."""

import cv2
import numpy as np
import pytest

from sptad_jax.data import optical_flow
from sptad_jax.data.optical_flow import compute_flow, quantise_flow
from sptad_jax.errors import UserError


def moving_texture(size, num_frames, dx, dy, seed=0):
    """Frames whose content moves right by dx and down by dy pixels a frame."""
    margin = 40
    noise = np.random.default_rng(seed).random((size + 2 * margin, size + 2 * margin)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    smooth = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    frames = [smooth[margin - dy * t: margin - dy * t + size, margin - dx * t: margin - dx * t + size]
              for t in range(num_frames)]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


@pytest.mark.parametrize(("method", "size"), [("dis", 32), ("dis", 48), ("dis", 112), ("tvl1", 32), ("tvl1", 64)])
def test_known_translation(method, size):
    """Catches x and y exchanged, a wrong sign, a wrong scale, and a method that gives zeros on small pictures."""
    flow = compute_flow(moving_texture(size, 3, dx=3, dy=-2), method, bound=20)
    assert flow.shape == (3, size, size, 2) and flow.dtype == np.uint8
    centre = flow[:, size // 4: -size // 4, size // 4: -size // 4].astype(float)
    pixels = np.median(centre, axis=(0, 1, 2)) / 255 * 40 - 20
    np.testing.assert_allclose(pixels, [3, -2], atol=0.25)


def test_counts_and_rest():
    """As many flow frames as frames, the last repeated; a still video is the byte in the middle, 128."""
    flow = compute_flow(moving_texture(32, 4, 2, 0), "dis")
    assert len(flow) == 4 and (flow[3] == flow[2]).all()
    assert (compute_flow(np.full((1, 32, 32, 3), 99, np.uint8), "dis") == 128).all()
    assert (compute_flow(np.full((3, 32, 32, 3), 99, np.uint8), "tvl1") == 128).all()


def test_each_pair_on_its_own():
    """A solver that carries the flow of one pair into the next would make frames depend on where a video is cut."""
    frames = moving_texture(48, 5, 2, 1)
    frames[3:] = moving_texture(48, 2, -3, 0, seed=1)
    np.testing.assert_array_equal(compute_flow(frames, "dis")[3], compute_flow(frames[3:], "dis")[0])


def test_quantise():
    """Against the formula by exact fractions: ends, beyond the ends, rest, the other bound."""
    values = np.array([-25, -20, -10, 0, 0.1, 10, 20, 30], np.float32)
    assert quantise_flow(values, 20).tolist() == [0, 0, 64, 128, 128, 191, 255, 255]
    assert quantise_flow(values, 10).tolist() == [0, 0, 0, 128, 129, 255, 255, 255]


def test_missing_method(monkeypatch):
    """Without OpenCV's contributed modules the sentence must say which package to install; DIS must go on."""
    monkeypatch.delattr(optical_flow.cv2, "optflow")
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="opencv-contrib-python-headless"):
        compute_flow(frames, "tvl1")
    compute_flow(frames, "dis")
    with pytest.raises(UserError, match="choose tvl1, tvl1_jax or dis"):
        compute_flow(frames, "raft")
