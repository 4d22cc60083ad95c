"""What comes after the network: mAP on an ActivityNet-sized set, soft-NMS, and how both grow with their input.

    python -m benchmarks.evaluation [--ground-truth activitynet.json] [--quick] [--output evaluation.json]

mAP: 100 detections a video, at 10 thresholds, on the validation videos of an ActivityNet annotation file, or on 4,728
drawn videos where none is given. Soft-NMS: 200,000 candidates in 4,000 groups (a video and class each), and single
groups of up to 5,000.
"""

import argparse
import functools
import resource
from typing import Any

import numpy as np

from benchmarks.timing import report, time_in_turns
from sptad_jax.evaluation import average_precision, files
from sptad_jax.inference.nms import gaussian_decay, greedy_nms

VIDEOS, CLASSES, PER_VIDEO, DURATION_SEC = 4728, 200, 100, 120.0
TIOUS = [round(0.5 + 0.05 * i, 2) for i in range(10)]
SIGMA, MIN_SCORE = 0.5, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", default="", metavar="GT.json", help="ActivityNet annotations")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the videos, one repeat")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    share = 10 if args.quick else 1
    truth, subset = draw_truth(rng, VIDEOS // share), None
    if args.ground_truth:
        truth, subset = files.load_ground_truth(args.ground_truth), "validation"
    detections = draw_detections(rng, truth, subset)
    count = sum(map(len, detections["results"].values()))
    groups = draw_groups(rng, 4000 // share, 50)
    sides: dict[str, Any] = {
        f"mAP, {count} detections, {len(TIOUS)} thresholds":
            lambda: average_precision.evaluate(truth, detections, TIOUS, subset=subset),
        f"soft-NMS, {groups[1].size} candidates in {len(groups[1])} groups":
            lambda: greedy_nms(*groups, gaussian_decay(SIGMA), MIN_SCORE),
    }
    for size in (50, 500, 5000):
        group = draw_groups(rng, 1, size)
        sides[f"soft-NMS, one group of {size}"] = (
            functools.partial(greedy_nms, *group, gaussian_decay(SIGMA), MIN_SCORE))
    seconds = time_in_turns(sides, 1 if args.quick else args.repeats)
    report("After the network", [
        {"what": name, "median seconds": float(np.median(times)), "best": min(times)} for name, times in seconds.items()
    ], args.output, peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def draw_truth(rng: np.random.Generator, videos: int) -> dict[str, Any]:
    """An annotation file's content: one or two actions a video, of one class, as in ActivityNet."""
    database = {}
    for i in range(videos):
        label = f"class {rng.integers(CLASSES)}"
        database[f"v_{i}"] = {"subset": "validation", "annotations": [
            {"label": label, "segment": np.sort(rng.uniform(0, DURATION_SEC, 2)).tolist()}
            for _ in range(rng.integers(1, 3))]}
    return {"database": database}


def draw_detections(rng: np.random.Generator, truth: dict[str, Any], subset: str | None) -> dict[str, Any]:
    """PER_VIDEO detections of every video: its own actions shifted, with labels of which every other one is right."""
    labels = sorted({row["label"] for entry in truth["database"].values() for row in entry["annotations"]})
    results = {}
    for name, entry in truth["database"].items():
        if subset and entry["subset"] != subset:
            continue
        base = np.array([row["segment"] for row in entry["annotations"]] or [[0.0, DURATION_SEC]], np.float64)
        chosen = rng.integers(len(base), size=PER_VIDEO)
        length = np.maximum(base[:, 1] - base[:, 0], 1.0)[chosen, None]
        moved = np.sort(base[chosen] + rng.normal(0, 0.3, (PER_VIDEO, 2)) * length, axis=1)
        right = rng.random(PER_VIDEO) < 0.5
        results[name] = [
            {"label": entry["annotations"][k]["label"] if r and entry["annotations"] else labels[g],
             "score": s, "segment": pair}
            for k, r, g, s, pair in zip(chosen.tolist(), right.tolist(), rng.integers(len(labels), size=PER_VIDEO),
                                        rng.random(PER_VIDEO).tolist(), moved.tolist())]
    return {"results": results}


def draw_groups(rng: np.random.Generator, groups: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [G, n, 2] in seconds and scores [G, n], as the proposals of overlapping windows: a few a second."""
    centre, length = rng.uniform(0, 1.5 * size, (groups, size, 1)), rng.exponential(5.0, (groups, size, 1)) + 0.1
    return centre + np.concatenate([-length, length], axis=-1) / 2, rng.random((groups, size))


if __name__ == "__main__":
    main()
