"""Average recall against the average number of proposals a video (activitynet/ActivityNet 82304fa, eval_proposal.py).

Labels are ignored: what counts is whether the segments of a video, best score first, reach its instances. A segment
that is listed under two labels counts twice, as in the official script.
"""

from typing import Any

import numpy as np

from sptad_jax import segments
from sptad_jax.errors import UserError
from sptad_jax.evaluation.files import read_detections, read_ground_truth

TIOUS = np.linspace(0.5, 0.95, 10)


def average_recall(
    ground_truth: dict[str, Any], detections: dict[str, Any], subset: str | None = None, max_average: int = 100
) -> dict[str, Any]:
    """AR@AN and the area under it (AUC), the measure of ActivityNet's proposal task.

    A budget of AN proposals a video on average is a share AN V / P of the P proposals of the V videos with ground
    truth, and every video spends that share of its own list: long lists stay long (eval_proposal.py:158-273). First
    every list is cut to the share of `max_average`; shares round down. An instance is recalled at a tIoU if any
    proposal within the budget reaches it; two instances may share a proposal. AR is the mean over tIoU .5:.05:.95.

    Args:
      ground_truth: parsed ActivityNet JSON.
      detections: parsed detections, {"results": {video: [{"label", "score", "segment"}]}}; equal scores keep the
        order of the file.
      subset: videos to evaluate on; None takes all.
      max_average: AN of the last point.

    Returns: "average_number" [100], from max_average/100 to max_average; "average_recall" [100]; "recall", the same
    for each tIoU; "auc", the trapezoid area over max_average. As the curve begins at its first point, perfect
    proposals have 0.99. All recalls lie in 0..1. Proposals in videos without ground truth are left out (the official
    script counts them in P). Raises UserError where nothing is annotated.
    """
    _, truth = read_ground_truth(ground_truth, subset)
    if not truth.labels:
        raise UserError(f"ground truth: nothing is annotated in subset '{subset or 'all'}', so recall is undefined.")
    found = read_detections(detections)
    videos = {name: i for i, name in enumerate(dict.fromkeys(truth.videos))}
    gt_video = np.array([videos[name] for name in truth.videos])
    det_video = np.array([videos.get(name, -1) for name in found.videos], np.int64)
    counts = np.bincount(det_video[det_video >= 0], minlength=len(videos))
    ratio = max_average * float(len(videos)) / max(int(counts.sum()), 1)
    kept = np.minimum((counts * ratio).astype(int), counts)
    # Written like this for the same rounding as the official script: 0.29 of 100 proposals are 28 there.
    shares = np.arange(1, 101) / 100.0 * (max_average * float(len(videos)) / max(int(kept.sum()), 1))
    budget = np.minimum((kept[:, None] * shares).astype(int), kept[:, None])  # [V, 100]

    order = np.lexsort((-found.scores, det_video))
    first = np.searchsorted(det_video[order], np.arange(len(videos)))
    never = len(order) + 1
    needed = np.full((len(gt_video), len(TIOUS)), never)  # how many proposals it takes to recall an instance
    for video in np.flatnonzero(kept):
        of_video = np.flatnonzero(gt_video == video)
        best = found.segments_sec[order[first[video] : first[video] + kept[video]]]
        tiou = segments.tiou(truth.segments_sec[of_video, None], best[None])
        reached = tiou[:, None] >= TIOUS[:, None]  # [instances, tIoU, proposals]
        needed[of_video] = np.where(reached.any(axis=-1), reached.argmax(axis=-1) + 1, never)
    recall = (needed[:, :, None] <= budget[gt_video][:, None]).mean(axis=0)
    number = np.arange(1, 101) / 100 * max_average
    return {
        "num_videos": len(videos),
        "num_proposals": int(counts.sum()),
        "average_number": number.tolist(),
        "average_recall": recall.mean(axis=0).tolist(),
        "recall": {f"{t:g}": row.tolist() for t, row in zip(TIOUS, recall)},
        "auc": float(np.trapezoid(recall.mean(axis=0), number) / max_average),
    }
