"""Slow, obvious error analysis of DETAD and average recall of proposals: loops over everything.

`truth`: video -> [(label, segment)]; `found`: video -> [(label, score, segment)], both in file order. An instance or a
detection is named by (video, index).
"""

from tests.reference.average_precision import overlap_over_union


def to_files(truth: dict, found: dict, duration: float | None = None) -> tuple[dict, dict]:
    """The two as parsed ActivityNet ground truth and detections."""
    length = {} if duration is None else {"duration": duration}
    database = {
        video: length | {"annotations": [{"label": name, "segment": list(s)} for name, s in rows]}
        for video, rows in truth.items()
    }
    results = {
        video: [{"label": name, "score": score, "segment": list(s)} for name, score, s in rows]
        for video, rows in found.items()
    }
    return {"database": database}, {"results": results}


def ranked(found: dict, label: str) -> list:
    """Names of the detections of a class, best score first."""
    names = [(video, i) for video in found for i, row in enumerate(found[video]) if row[0] == label]
    return sorted(names, key=lambda name: -found[name[0]][name[1]][1])


def claims(truth: dict, found: dict, threshold: float) -> dict:
    """Detection -> the instance of its class that it takes."""
    taken = {}
    for label in classes(truth):
        for video, i in ranked(found, label):
            free = {}
            for j, (name, target) in enumerate(truth[video]):
                tiou = overlap_over_union(found[video][i][2], target)
                if name == label and tiou >= threshold and (video, j) not in taken.values():
                    free[j] = tiou
            if free:
                taken[video, i] = (video, max(free, key=free.get))  # the first of equals
    return taken


def classes(truth: dict) -> list:
    return sorted({label for rows in truth.values() for label, _ in rows})


def cause(truth: dict, found: dict, taken: dict, detection: tuple, threshold: float) -> str:
    video, i = detection
    label, _, segment = found[video][i]
    if detection in taken:
        return "true_positive"
    best, best_label = 0.0, None
    for name, target in truth[video]:
        tiou = overlap_over_union(segment, target)
        if best_label is None or tiou > best:
            best, best_label = tiou, name
    if best >= threshold:
        return "double_detection" if best_label == label else "wrong_label"
    if best >= 0.1:
        return "localisation" if best_label == label else "confusion"
    return "background"


def precisions(flags: list, number: int, average: float) -> list:
    """Precision after each detection if the class had `average` instances instead of `number`."""
    values = []
    for i in range(len(flags)):
        recall = sum(flags[: i + 1]) / number
        false = sum(not flag for flag in flags[: i + 1])
        values.append(recall * average / (recall * average + false))
    return values


def area(flags: list, number: int, average: float) -> float:
    values = precisions(flags, number, average)
    return sum(max(values[i:]) for i, flag in enumerate(flags) if flag) / number


def sizes(truth: dict) -> dict:
    return {label: sum(name == label for rows in truth.values() for name, _ in rows) for label in classes(truth)}


def map_n(truth: dict, found: dict, threshold: float, without: str = "", factor: float = float("inf")) -> float:
    """Mean over classes; `without` leaves an error out; only the best `factor` times G detections of a class count."""
    taken, number = claims(truth, found, threshold), sizes(truth)
    average = sum(number.values()) / len(number)
    total = 0.0
    for label, count in number.items():
        rows = [r for k, r in enumerate(ranked(found, label)) if k < factor * count]
        rows = [r for r in rows if not without or cause(truth, found, taken, r, threshold) != without]
        total += area([r in taken for r in rows], count, average)
    return total / len(number)


def profile(truth: dict, found: dict, threshold: float) -> list:
    """For each bin the causes of its detections, in any order."""
    taken = claims(truth, found, threshold)
    bins: list = [[] for _ in range(10)]
    for label, count in sizes(truth).items():
        for k, detection in enumerate(ranked(found, label)):
            if k < 10 * count:
                bins[k // count].append(cause(truth, found, taken, detection, threshold))
    return [names for names in bins if names]


def bucket_map_n(truth: dict, found: dict, thresholds: list, members: set) -> list:
    """At every threshold; a detection that takes an instance outside of `members` at any threshold is left out."""
    taken = [claims(truth, found, t) for t in thresholds]
    number = sizes(truth)
    average = sum(number.values()) / len(number)
    result = []
    for now in taken:
        areas = []
        for label in number:
            inside = sum(truth[v][j][0] == label for v, j in members)
            rows = [r for r in ranked(found, label) if all(t.get(r) in members or r not in t for t in taken)]
            if inside:
                areas.append(area([r in now for r in rows], inside, average))
        result.append(sum(areas) / len(areas))
    return result


def found_instances(truth: dict, found: dict, threshold: float) -> set:
    """Instances taken by a detection at whose rank the precision is above 0.05."""
    taken, number = claims(truth, found, threshold), sizes(truth)
    average = sum(number.values()) / len(number)
    names = set()
    for label, count in number.items():
        rows = ranked(found, label)
        values = precisions([r in taken for r in rows], count, average)
        names |= {taken[r] for r, value in zip(rows, values) if r in taken and value > 0.05}
    return names


def average_recall(truth: dict, found: dict, thresholds: list, max_average: float) -> list:
    """Recall averaged over the thresholds at each hundredth of `max_average` proposals a video."""
    videos = [video for video in truth if truth[video]]
    lists = {v: [s for _, _, s in sorted(found.get(v, []), key=lambda row: -row[1])] for v in videos}
    total = sum(len(rows) for rows in lists.values())
    if not total:
        return [0.0] * 100
    ratio = max_average * float(len(videos)) / total
    lists = {v: rows[: int(len(rows) * ratio)] for v, rows in lists.items()}
    kept = sum(len(rows) for rows in lists.values())
    curve = []
    for j in range(1, 101):
        hits = instances = 0
        for video in videos:
            share = j / 100.0 * (max_average * float(len(videos)) / kept) if kept else 0.0
            shown = lists[video][: int(len(lists[video]) * share)]
            for _, target in truth[video]:
                best = max((overlap_over_union(segment, target) for segment in shown), default=0.0)
                hits += sum(best >= t for t in thresholds)
                instances += len(thresholds)
        curve.append(hits / instances)
    return curve
