"""Slow, obvious mAP of the ActivityNet protocol: loops over classes, thresholds, detections and ground truths."""


def overlap_over_union(a: tuple[float, float], b: tuple[float, float]) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inside
    return inside / union if union > 0 else 0.0


def interpolated_area(flags: list[bool], num_ground_truth: int) -> float:
    """Sum over the true positives of 1/num_ground_truth times the best precision from there on."""
    precisions = [sum(flags[: i + 1]) / (i + 1) for i in range(len(flags))]
    return sum(max(precisions[i:]) for i, flag in enumerate(flags) if flag) / num_ground_truth


def class_ap(truth: dict, found: dict, label: str, threshold: float) -> float:
    """`truth`: video -> [(label, segment)]; `found`: video -> [(label, score, segment)], both in file order."""
    rows = [(score, video, segment) for video in found for name, score, segment in found[video] if name == label]
    rows.sort(key=lambda row: -row[0])  # Python's sort is stable
    taken = set()
    flags = []
    for _, video, segment in rows:
        best, best_tiou = None, threshold
        for index, (name, target) in enumerate(truth.get(video, [])):
            tiou = overlap_over_union(segment, target)
            free = name == label and (video, index) not in taken
            if free and tiou >= threshold and (best is None or tiou > best_tiou):
                best, best_tiou = index, tiou
        flags.append(best is not None)
        if best is not None:
            taken.add((video, best))
    num = sum(name == label for video in truth for name, _ in truth[video])
    return interpolated_area(flags, num)


def mean_average_precision(truth: dict, found: dict, thresholds: list[float]) -> list[float]:
    labels = sorted({name for video in truth for name, _ in truth[video]})
    found = {video: rows for video, rows in found.items() if video in truth}
    return [sum(class_ap(truth, found, label, t) for label in labels) / len(labels) for t in thresholds]
