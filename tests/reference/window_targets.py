"""The windows of a video and their targets, one by one, as the paper words them."""


def list_windows(num_frames, instances, *, length, stride, rule, min_tioa, action_targets):
    """instances: list of (start, end, label) in frames. Returns [(start, [(start, end, label)], {clip labels})]."""
    starts, position = [], 0
    while position + length <= num_frames:
        starts.append(position)
        position += stride
    if not starts:
        starts = [0]
    elif starts[-1] + length < num_frames:
        starts.append(num_frames - length)
    answer = []
    for start in starts:
        end, kept, touched, whole = start + length, [], set(), False
        for a, b, label in instances:
            inside = min(b, end) - max(a, start)
            if inside <= 0:
                continue
            share = inside / (b - a)
            touched.add(label)
            whole = whole or (a >= start and b <= end)
            if share >= min_tioa if rule == "afsd" else share > min_tioa:
                kept.append(((max(a, start) - start) / length, (min(b, end) - start) / length, label))
        if rule == "all" or (rule == "paper" and kept) or (rule == "afsd" and whole):
            clip = touched if action_targets == "any" else {label for *_, label in kept}
            answer.append((start, kept, clip))
    return answer
