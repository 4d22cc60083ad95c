"""Mean average precision by THUMOS14's own protocol of 2014 (zhengshou/scnn ee05621, TH14evalDet_Updated.m).

Here the ground truth chooses: in the order of the file each instance takes, among the detections of its video and class
that are still free, the one with the largest tIoU, if that is strictly above the threshold. What is taken is a true
positive. Of the rest, whatever overlaps an Ambiguous segment of its video, however little, is left out, and the others
are false positives. AP is the sum of the precisions at the true positives over the number of instances: nothing is
interpolated. The ActivityNet protocol is in average_precision.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sptad_jax.evaluation.average_precision import (
    candidate_pairs,
    check_thresholds,
    choose_labels,
    match,
    rank_by_score,
    select,
    summarise,
)
from sptad_jax.evaluation.files import AMBIGUOUS, read_ambiguous, read_detections, read_ground_truth

# Number of test videos -> those that are left out of the 213 with annotation; docs/datasets.md says who uses which.
TEST_SETS = {
    213: (),
    212: ("video_test_0001292",),
    211: ("video_test_0001292", "video_test_0000270"),
    210: ("video_test_0001292", "video_test_0000270", "video_test_0001496"),
}


def evaluate(
    ground_truth: dict[str, Any], detections: dict[str, Any], tious: Sequence[float], subset: str | None = None
) -> dict[str, Any]:
    """mAP at every threshold, per class and overall, as the content of results.json.

    Args:
      ground_truth: parsed ActivityNet JSON, see `files.load_ground_truth`; for Ambiguous see `files.read_ambiguous`.
      detections: parsed detections, see `files.load_detections`.
      tious: thresholds in (0, 1]; the average is taken over exactly these.
      subset: videos to evaluate on; None takes all.

    Detections in a video that the ground truth does not name at all are false positives, since the test set of the
    challenge holds many videos without an action; those in a video of another subset, or of an unknown label, are left
    out and counted in `num_ignored_detections`. Equal scores are ranked by the name of the video, then in file order.
    Raises UserError where nothing is annotated.
    """
    thresholds = check_thresholds(tious)
    videos, truth = read_ground_truth(ground_truth, subset)
    labels = choose_labels(truth, subset)
    found = read_detections(detections)
    of_other_subsets = ground_truth["database"].keys() - set(videos)
    names = sorted({*videos, *found.videos} - of_other_subsets)
    gt_class, gt_video, gt_se, _ = select(truth, names, labels)
    det_class, det_video, det_se, det_score = select(found, names, labels)
    by_video = np.argsort(det_video, kind="stable")
    order = by_video[rank_by_score(det_class[by_video], det_score[by_video])]
    det_class, det_video, det_se = det_class[order], det_video[order], det_se[order]

    gt_group, det_group = gt_video * len(labels) + gt_class, det_video * len(labels) + det_class
    claimed = match(det_group, det_se, gt_group, gt_se, np.nextafter(thresholds, 2.0))  # the roles are swapped
    hits = np.zeros((len(det_class), len(thresholds)), bool)
    instance, k = np.nonzero(claimed >= 0)
    hits[claimed[instance, k], k] = True

    ambiguous = read_ambiguous(ground_truth, videos)
    _, ambiguous_video, ambiguous_se, _ = select(ambiguous, names, [AMBIGUOUS])
    touching, _, _ = candidate_pairs(ambiguous_video, ambiguous_se, det_video, det_se, np.nextafter(0.0, 1.0))
    counted = hits | ~np.isin(np.arange(len(det_class)), touching)[:, None]

    bounds = np.searchsorted(det_class, np.arange(len(labels) + 1))
    num_gt = np.bincount(gt_class, minlength=len(labels))
    ap = np.stack([
        average_precision(hits[bounds[c] : bounds[c + 1]], counted[bounds[c] : bounds[c + 1]], int(num_gt[c]))
        for c in range(len(labels))
    ])  # fmt: skip
    return summarise(
        "thumos-official", subset, labels, thresholds, ap, num_videos=len(videos), num_ground_truth=len(gt_class),
        num_detections=len(det_class), num_ignored_detections=len(found.labels) - len(det_class),
    )  # fmt: skip


def average_precision(hits: np.ndarray, counted: np.ndarray, num_ground_truth: int) -> np.ndarray:
    """Sum of the precisions at the true positives, over `num_ground_truth` (which is positive).

    `hits` and `counted` are bool [n, k]: true positives, and true or false positives, in descending score, for k
    thresholds. Returns float64 [k]; 0 where there is no detection.
    """
    precision = hits.cumsum(axis=0) / np.maximum(counted.cumsum(axis=0), 1)
    return np.where(hits, precision, 0.0).sum(axis=0) / num_ground_truth
