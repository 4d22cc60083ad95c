"""TV-L1 in JAX against OpenCV's, a literal NumPy version of one scale, and pictures whose motion is known."""

import cv2
import jax
import numpy as np
import pytest

from sptad_jax.data import tvl1
from sptad_jax.data.optical_flow import compute_flow, quantise_flow
from sptad_jax.data.tvl1 import estimate_flow
from sptad_jax.data.video import FrameReader
from tests.reference import tvl1 as reference

SIDE, PAIRS = 40, 6  # one shape for most tests: compiling takes longer than solving


def texture(seed, side, sigma=2.0):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((side, side)).astype(np.float32), (0, 0), sigma)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def moved(matrix, seed, noise=0.0):
    """A pair of which the second shows the texture moved by matrix [2, 3] around the centre of the picture."""
    wide = texture(seed, 2 * SIDE)
    shift = np.array([[1, 0, SIDE], [0, 1, SIDE], [0, 0, 1.0]])
    full = shift @ np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(shift)
    after = cv2.warpAffine(wide, full[:2], (2 * SIDE, 2 * SIDE), flags=cv2.INTER_CUBIC)
    after = after + np.random.default_rng(seed).normal(0, noise, after.shape) if noise else after
    cut = slice(SIDE // 2, SIDE // 2 + SIDE)
    return [np.clip(np.rint(image[cut, cut]), 0, 255).astype(np.uint8) for image in (wide, after)]


def turn(degrees, scale=1.0, dx=0.0, dy=0.0):
    return cv2.getRotationMatrix2D((0, 0), degrees, scale) + [[0, 0, dx], [0, 0, dy]]


@pytest.fixture(scope="module")
def pairs():
    """Shifts, a turn, a zoom, noise and rest: uint8 [PAIRS, SIDE, SIDE] twice."""
    matrices = [turn(0, dx=2.5, dy=-1.25), turn(0, dx=-4, dy=3), turn(6), turn(-3, 1.08, 1), turn(0, dx=1), turn(0)]
    made = [moved(matrix, seed, noise=3.0 * (seed == 4)) for seed, matrix in enumerate(matrices)]
    return tuple(np.stack(images) for images in zip(*made))


@pytest.fixture(scope="module")
def flow(pairs):
    return np.asarray(estimate_flow(*pairs))


def opencv_flow(before, after, **settings):
    if not hasattr(cv2, "optflow"):
        pytest.skip("OpenCV without its contributed modules has no TV-L1")
    solver = cv2.optflow.DualTVL1OpticalFlow_create(**settings)
    return np.stack([solver.calc(a, b, None) for a, b in zip(before, after)])


def end_point_error(a, b):
    return np.linalg.norm(a - b, axis=-1).mean((1, 2))


def test_equals_opencv(pairs, flow):
    """Any constant, border, interpolation, order of steps or stop that is not OpenCV's."""
    error = end_point_error(flow, opencv_flow(*pairs))
    # rounding alone may stop a pair one iteration sooner: seldom, hence the median
    assert np.median(error) < 2e-3 and error.max() < 0.1, error


def test_oblong(pairs):
    """Height and width exchanged, in the pyramid or the sampling; a scale whose rounded sides are not in proportion."""
    before, after = (images[:, :23, :20] for images in pairs)  # 18 x 16 pixels on the coarse scale
    error = end_point_error(np.asarray(estimate_flow(before, after)), opencv_flow(before, after))
    assert np.median(error) < 1e-3 and error.max() < 0.1, error


def test_known_motion(flow):
    """A sign, an axis or a factor that is wrong in the same way in both programs."""
    centre = flow[:, 10:-10, 10:-10]
    for i, shift in ((0, (2.5, -1.25)), (1, (-4, 3)), (5, (0, 0))):
        np.testing.assert_allclose(centre[i].mean((0, 1)), shift, atol=0.1)
        assert np.abs(centre[i] - shift).max() < 0.5
    y, x = np.mgrid[10 : SIDE - 10, 10 : SIDE - 10] - SIDE / 2
    matrix = turn(6)
    turned = np.stack([matrix[0, 0] * x + matrix[0, 1] * y - x, matrix[1, 0] * x + matrix[1, 1] * y - y], axis=-1)
    assert np.abs(centre[2] - turned).mean() < 0.1


def test_each_pair_on_its_own(pairs, flow):
    """Pairs that share a stop or a sum, one after the other or side by side; at rest, anything that moves."""
    order = [3, 0, 5, 5, 1, 3]
    np.testing.assert_array_equal(np.asarray(estimate_flow(*(images[order] for images in pairs))), flow[order])
    small = [images[:, 8:28, 8:28] for images in pairs]
    together = np.asarray(estimate_flow(*small, at_once=PAIRS))
    mixed = np.asarray(estimate_flow(*(images[order] for images in small), at_once=PAIRS))
    np.testing.assert_array_equal(mixed, together[order])
    error = end_point_error(together, opencv_flow(*small))
    assert np.median(error) < 1e-3 and error.max() < 0.1, error
    assert (flow[5] == 0).all() and (together[5] == 0).all()


def test_fixed_iterations(pairs):
    """A count that is not the one asked for, a filter too many, a stop all the same: against OpenCV, kept from it."""
    small = [images[:, 8:28, 8:28] for images in pairs]
    fixed = np.asarray(estimate_flow(*small, iterations=9))
    error = end_point_error(fixed, opencv_flow(*small, epsilon=0.0, innnerIterations=9, outerIterations=1))
    assert error.max() < 2e-3, error


def test_compute_flow(pairs, flow, monkeypatch):
    """Pairs lost or repeated where a video is cut into batches; a program compiled again for a video of another
    length; frames that are not made grey, or bytes that are not encoded as OpenCV's flow is."""
    monkeypatch.setattr("sptad_jax.data.optical_flow.PAIRS", PAIRS)
    frames = np.random.default_rng(0).integers(0, 256, (PAIRS + 3, SIDE, SIDE, 3), np.uint8)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    compiled = estimate_flow._cache_size()
    stored = compute_flow(frames, "tvl1_jax")
    for start in (0, 2):  # the second ends with the video
        chosen = slice(start, start + PAIRS)
        fields = np.asarray(estimate_flow(grey[chosen], grey[start + 1 : start + PAIRS + 1]))
        np.testing.assert_array_equal(stored[chosen], quantise_flow(fields))
    np.testing.assert_array_equal(stored[-1], stored[-2])
    assert compute_flow(frames[:1], "tvl1_jax").shape == (1, SIDE, SIDE, 2)
    assert estimate_flow._cache_size() == compiled


def test_one_scale_against_the_literal_version():
    """A fault that OpenCV's program would hide by converging to the same field: each step, every border, each stop."""
    before, after = (image[8:19, 6:19].astype(np.float64) for image in moved(turn(4, dx=1.2), 7))
    field = np.random.default_rng(1).normal(0, 1.5, (2, *before.shape))
    with jax.enable_x64(True):
        solve = jax.jit(tvl1._solve_scale, static_argnames="iterations")
        solved = np.stack(solve(before, after, tuple(field), iterations=0))
    expected, counts = reference.solve_scale(before, after, field)
    assert max(counts) > tvl1.INNER and min(counts) < tvl1.INNER  # both ways to stop, and a second filter, were met
    np.testing.assert_allclose(solved, expected, atol=1e-6)


def test_steps_against_the_literal_version():
    """The parts that a field hides: samples far outside, a median with ties, gradients at corners, small gradients."""
    rng = np.random.default_rng(2)
    image, field = rng.random((9, 12)), rng.normal(0, 4, (2, 9, 12))
    field[:, 0, 0], field[:, 4, 4], field[:, 8, 11] = -300, 1e9, 0
    sampled = tvl1._sample_cubic(np.stack([image, 2 * image], -1), tuple(field))
    np.testing.assert_allclose(sampled[..., 0], reference.sample_cubic(image, field), atol=1e-5)
    np.testing.assert_allclose(sampled[..., 1], 2 * sampled[..., 0], rtol=1e-6)
    for values in (image, rng.integers(0, 4, image.shape)):
        values = values.astype(np.float32)
        np.testing.assert_array_equal(tvl1._median(values), reference.median_5x5(values))
        gradient = np.stack(tvl1._central_gradient(values))
        np.testing.assert_allclose(gradient, reference.central_gradient(values), atol=1e-6)
    p = rng.random((2, 9, 12))
    divergence = [[reference.divergence(p, y, x) for x in range(12)] for y in range(9)]
    np.testing.assert_allclose(tvl1._divergence(tuple(p)), divergence, atol=1e-6)
    for size in ((9, 7), (7, 9), (112, 90), (90, 112)):
        picture = rng.random((size[0], 12)).astype(np.float32)
        expected = cv2.resize(picture, (12, size[1]), interpolation=cv2.INTER_LINEAR)
        resized = tvl1._resize(picture, (size[1], 12), (size[0] / size[1], 1.0))
        np.testing.assert_allclose(resized, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["v_GGSY1Qvo990.mp4", "demo.mp4"])
def test_real_video(shared, name):
    """Constants that fit synthetic pictures alone; bytes that a network trained on OpenCV's flow would not know."""
    frames = np.stack(list(FrameReader(shared / "videos" / name, 10.0, SIDE)))[20 : 21 + PAIRS]
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    ours, theirs = np.asarray(estimate_flow(grey[:-1], grey[1:])), opencv_flow(grey[:-1], grey[1:])
    assert end_point_error(ours, theirs).mean() < 0.05
    assert (np.abs(quantise_flow(ours).astype(int) - quantise_flow(theirs)) <= 1).mean() > 0.98
