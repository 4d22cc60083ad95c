"""Where in a video something moves: the square that `fit="motion"` shows."""

import contextlib
import itertools
from collections.abc import Iterable

import cv2
import numpy as np

LOOK_FPS = 5.0  # pictures per second that are looked at
LOOK_SIZE = 60  # pixels of the shorter side of such a picture
NOISE = 6.0  # grey levels, beyond the median over the picture, that a change must exceed
FAINT = 0.1  # of the strongest motion (99 % quantile): less is the background's, where the camera moved
KEPT_SHARE = 0.95  # of the motion, along either axis, lies between the limits that are sought
MARGIN = 1.4  # sides of the square to the distance of these limits: arms reach out seldom
LEAST_SIDE = 0.55  # of the shorter side, lest a nodding head fill the picture

STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)  # of the search for the camera's motion

Square = tuple[float, float, float]  # top, left and side, in units of the picture's shorter side


def find_motion(pictures: Iterable[np.ndarray]) -> Square | None:
    """The square of a video's picture in which most of the motion happens.

    Each picture is laid over the one before by the affine map that fits best (cv2.findTransformECC), so that a camera
    which pans, shakes or zooms is not taken for motion; what then differs is summed up over the video.

    Args:
      pictures: grey uint8 [H, W], H or W of LOOK_SIZE pixels and the other side longer; a few a second.

    Returns: top, left and side in units of the shorter side, in whole pixels of these pictures and within them; None
    where nothing moves.
    """
    total = sum((_residual(before, after) for before, after in itertools.pairwise(pictures)), np.zeros((1, 1)))
    total = np.maximum(total - FAINT * np.quantile(total, 0.99), 0)
    if not total.any():
        return None
    height, width = total.shape
    top, bottom = _limits(total.sum(axis=1))
    left, right = _limits(total.sum(axis=0))
    shorter = min(height, width)
    side = round(min(max(MARGIN * max(bottom - top, right - left), LEAST_SIDE * shorter), shorter))
    corner = [round(min(max((start + end - side) / 2, 0), length - side))
              for start, end, length in ((top, bottom, height), (left, right, width))]
    return corner[0] / shorter, corner[1] / shorter, side / shorter


def _residual(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Grey levels [H, W] by which two pictures differ beyond NOISE once the camera's motion is taken out."""
    first, second = (cv2.GaussianBlur(picture, (3, 3), 0).astype(np.float32) for picture in (before, after))
    camera = np.eye(2, 3, dtype=np.float32)
    with contextlib.suppress(cv2.error):  # pictures without texture, or nothing alike after a cut: as if it stood still
        camera = np.asarray(cv2.findTransformECC(first, second, camera, cv2.MOTION_AFFINE, STOP)[1])
    size, method = before.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    change = np.abs(first - cv2.warpAffine(second, camera, size, flags=method))
    change = np.maximum(change - np.median(change) - NOISE, 0)
    change[cv2.warpAffine(np.ones_like(change), camera, size, flags=method) < 0.99] = 0  # seen in one of them only
    return change


def _limits(profile: np.ndarray) -> tuple[float, float]:
    """Where KEPT_SHARE of a profile [L] begins and ends, in pixels, as much cut off on either side."""
    below = np.concatenate([[0.0], np.cumsum(profile)]) / profile.sum()
    start, end = np.interp([(1 - KEPT_SHARE) / 2, (1 + KEPT_SHARE) / 2], below, np.arange(len(below)))
    return float(start), float(end)
