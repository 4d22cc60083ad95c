"""Slow, obvious AP of THUMOS14's own protocol: loops over videos, ground truths and detections."""


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over the hull, which is the union where there is an intersection."""
    inside = min(a[1], b[1]) - max(a[0], b[0])
    return inside / (max(a[1], b[1]) - min(a[0], b[0])) if inside > 0 else 0.0


def class_ap(truth: dict, found: dict, label: str, threshold: float) -> float:
    """`truth`: video -> [(label, segment)], Ambiguous too; `found`: video -> [(label, score, segment)]; file order."""
    verdicts = []  # (score, whether it hit)
    for video in sorted(set(truth) | set(found)):
        rows = [(score, segment) for name, score, segment in found.get(video, []) if name == label]
        rows.sort(key=lambda row: -row[0])  # Python's sort is stable
        free = list(range(len(rows)))
        for name, target in truth.get(video, []):
            if name == label and free:
                best = max(free, key=lambda i: overlap(target, rows[i][1]))  # the first of equals
                if overlap(target, rows[best][1]) > threshold:
                    free.remove(best)
        unclear = [target for name, target in truth.get(video, []) if name == "Ambiguous"]
        for i, (score, segment) in enumerate(rows):
            if i not in free or not any(overlap(segment, target) > 0 for target in unclear):
                verdicts.append((score, i not in free))
    verdicts.sort(key=lambda verdict: -verdict[0])
    flags = [flag for _, flag in verdicts]
    precisions = [sum(flags[: i + 1]) / (i + 1) for i, flag in enumerate(flags) if flag]
    return sum(precisions) / sum(name == label for video in truth for name, _ in truth[video])
