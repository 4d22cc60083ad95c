"""Do the tests see a fault? Plants one fault at a time in a copy of the project and runs the tests that should go red.

    python -m tests.planted_faults            # all of them; exit code 0 when every fault is caught
    python -m tests.planted_faults 3 17       # these alone

A fault that survives calls for a new test. The suite does not run this: it takes about ten minutes on two cores.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
GEOMETRY, SOI = "sptad_jax/segments.py", "sptad_jax/models/soi_align.py"
HEAD = "sptad_jax/models/detection_head.py"
LOSSES, MATCHING = "sptad_jax/training/losses.py", "sptad_jax/training/matching.py"
NMS, POST = "sptad_jax/inference/nms.py", "sptad_jax/inference/postprocess.py"
AP, WINDOWS = "sptad_jax/evaluation/average_precision.py", "sptad_jax/data/windows.py"
TESTS = {NMS: "tests/test_postprocess.py"}  # where they are not called after the module

# what is wrong, file, the text as it is, the text with the fault
FAULTS = (
    ("centre and width: the start is moved by the whole width", GEOMETRY, "centre - 0.5 * width", "centre - width"),
    ("expansion: swapped sign", GEOMETRY, "[start - margin, end + margin]", "[start + margin, end + margin]"),
    ("tIoU: disjoint segments overlap negatively", GEOMETRY, ", 0.0, None\n", ", None, None\n"),
    ("GIoU: the hull's part is added", GEOMETRY, "- _divide(hull - union, hull)", "+ _divide(hull - union, hull)"),
    ("tIoA: share of the wrong segment", GEOMETRY, "_overlap(a_se, b_se), a_se[..., 1] - a_se[..., 0])",
     "_overlap(a_se, b_se), b_se[..., 1] - b_se[..., 0])"),
    ("level: > for >= at a power of two", SOI, "else share[..., None] >= bounds", "else share[..., None] > bounds"),
    ("level: off by one octave", SOI, "- (num_levels - 1) - shift", "- num_levels - shift"),
    ("level: taken from the expanded segment", SOI, "choose_level(segments_se, len(levels)",
     "choose_level(segments.expand(segments_se, eta), len(levels)"),
    ("SoI Align: no half-cell offset", SOI, "start = start - 0.5", "start = start - 0.0"),
    ("SoI Align: swapped weights of the two neighbours", SOI, "(weights * (1.0 - fraction))", "(weights * fraction)"),
    ("SoI Align: the last step is never read", SOI, "jnp.clip(positions, 0.0, steps - 1.0)",
     "jnp.clip(positions, 0.0, steps - 2.0)"),
    ("SoI Align: gradient flows into the segments", SOI,
     "jax.lax.stop_gradient(segments_se).astype(wide(segments_se))", "segments_se.astype(wide(segments_se))"),
    ("stages: missing stop-gradient between them", HEAD, "segments_se = jax.lax.stop_gradient(segments_se)\n",
     "pass\n"),
    ("refinement: the centre moves by twice the delta", HEAD, "deltas[..., 0] / DELTA_WEIGHTS[0] * width",
     "deltas[..., 0] * width"),
    ("refinement: deltas of centre and width swapped", HEAD, "deltas[..., 1] / DELTA_WEIGHTS[1], MAX",
     "deltas[..., 0] / DELTA_WEIGHTS[1], MAX"),
    ("attention: wrong scale", HEAD, "math.sqrt(hidden // heads)", "math.sqrt(hidden)"),
    ("attention: swapped axes of query and key", HEAD, '"bnhc,bmhc->bhnm"', '"bnhc,bmhc->bhmn"'),
    ("focal loss: alpha for the background", LOSSES, "alpha * targets + (1 - alpha) * (1 - targets)",
     "(1 - alpha) * targets + alpha * (1 - targets)"),
    ("loss: each window's own number of targets", LOSSES, "valid.astype(jnp.float32).sum(), 1.0",
     "valid.astype(jnp.float32).sum(-1).mean(), 1.0"),
    ("loss: padded targets count", LOSSES, "jnp.where(valid, term, 0.0).sum((1, 2))", "term.sum((1, 2))"),
    ("loss: padding is not taken out of the input", LOSSES,
     "predicted = jnp.where(valid[..., None], predicted, target)", "pass"),
    ("loss: padded labels become class 0", LOSSES, "dtype=jnp.float32) * valid[..., None]", "dtype=jnp.float32)"),
    ("matching: overlap is a cost, not a gain", MATCHING,
     "- config.giou_cost * overlap", "+ config.giou_cost * overlap"),
    ("matching: rows and columns swapped", MATCHING, ".at[columns].set(rows.astype(jnp.int32))",
     ".at[rows].set(columns.astype(jnp.int32))"),
    ("matching: missing stop-gradient", MATCHING, "return jax.lax.stop_gradient(jnp.where(", "return (jnp.where("),
    ("matching: padded targets cost", MATCHING, "jnp.where(valid[None, :, None, :], cost, 0.0)", "cost"),
    ("soft-NMS: tIoU not squared", NMS, "np.exp(tiou * tiou * (-1.0 / sigma))", "np.exp(tiou * (-1.0 / sigma))"),
    ("NMS: a tIoU of just the limit is suppressed", NMS, "(tiou <= max_tiou)", "(tiou < max_tiou)"),
    ("NMS: ties in reverse order", NMS, "(first < name[other])", "(first > name[other])"),
    ("NMS: a stretch of time does not see the next", NMS, "for neighbours in (left[taken], right[taken])",
     "for neighbours in (left[taken],)"),
    ("NMS: across classes", POST, "np.unique(label, return_inverse=True)[1] if config.nms_per_class",
     "np.unique(label, return_inverse=True)[1] if not config.nms_per_class"),
    ("windows to seconds: the start is forgotten", POST,
     "starts[:, None, None] + np.clip", "0 * starts[:, None, None] + np.clip"),
    ("scores: the clip probability of another window", POST, "np.asarray(clip_prob, np.float64)[:, None, :]",
     "np.asarray(clip_prob, np.float64)[::-1, None, :]"),
    ("AP: > for >= at the threshold", AP, "keep = tiou >= threshold", "keep = tiou > threshold"),
    ("AP: a ground truth is found twice", AP, "if not hit[d] and not taken[g]", "if not hit[d]"),
    ("AP: not interpolated", AP, "np.maximum.accumulate(precision[::-1], axis=0)[::-1]", "precision"),
    ("AP: ties in reverse order", AP, "np.lexsort((-scores, classes))",
     "np.lexsort((-np.arange(len(scores)), -scores, classes))"),
    ("windows: the tail is lost", WINDOWS, "starts if starts[-1] == last else np.append(starts, last)", "starts"),
    ("windows: >= for > at half an instance", WINDOWS, 'if config.window_rule == "afsd" else tioa > config.min_tioa',
     'if config.window_rule == "afsd" else tioa >= config.min_tioa'),
)


def plant(fault: tuple[str, str, str, str], folder: pathlib.Path) -> bool:
    """Runs the tests that name the faulty module on a copy with the fault: True where one of them fails."""
    _, name, healthy, faulty = fault
    source = (ROOT / name).read_text(encoding="utf-8")
    if source.count(healthy) != 1:
        raise SystemExit(f"{name}: {healthy!r} stands there {source.count(healthy)} times, not once; mend the list")
    (folder / name).write_text(source.replace(healthy, faulty), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder)}  # ahead of the installed checkout
    tests = TESTS.get(name, f"tests/test_{pathlib.Path(name).stem}.py")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", tests]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 1
    finally:
        (folder / name).write_text(source, encoding="utf-8")


def main() -> int:
    chosen = [int(text) for text in sys.argv[1:]] or range(1, len(FAULTS) + 1)
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "project"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__"))
        for number in chosen:
            caught = plant(FAULTS[number - 1], folder)
            survivors += not caught
            print(f"{number:3d}  {'caught  ' if caught else 'SURVIVED'}  {FAULTS[number - 1][0]}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
