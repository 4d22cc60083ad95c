"""A work folder as a run leaves it, with plausible curves, detections and frames; for the tests of the report."""

import json
import pathlib

import numpy as np

from sptad_jax.config import Config, to_dict
from sptad_jax.evaluation.analysis import analyse

CLASSES = ("BaseballPitch", "CleanAndJerk", "CliffDiving", "GolfSwing", "HammerThrow", "LongJump", "PoleVault")
TIOUS = ("0.3", "0.4", "0.5", "0.6", "0.7")


def dataset(rng: np.random.Generator, classes=CLASSES, videos: int = 18) -> tuple[dict, dict]:
    """A database in two subsets and plausible detections of the test videos: good ones, shifted ones, false ones."""
    database, results = {}, {}
    for k in range(videos):
        subset = "test" if k % 3 == 0 else "validation"
        name, duration = f"video_{subset}_{k:07d}", float(rng.uniform(60, 240))
        main = rng.integers(len(classes))
        annotations, found = [], []
        for start in np.arange(rng.uniform(2, 10), duration - 22, rng.uniform(11, 24)):
            label = classes[main if rng.random() < 0.8 else (main + 1) % len(classes)]
            length = float(rng.gamma(3, 2) + 0.8)
            annotations.append({"label": label, "segment": [float(start), float(start) + length]})
            for _ in range(3):
                shift, stretch = rng.normal(0, 0.22, 2) * length
                said = label if rng.random() < 0.85 else classes[rng.integers(len(classes))]
                segment = [float(start + shift), float(start + shift + length * 0.6 + abs(stretch))]
                found.append({"label": said, "score": float(rng.beta(4, 2)), "segment": segment})
        for start in rng.uniform(0, duration - 8, 12):
            said = classes[rng.integers(len(classes))]
            found.append({"label": said, "score": float(rng.beta(1, 6)), "segment": [start, start + rng.uniform(1, 8)]})
        database[name] = {"subset": subset, "duration": duration, "annotations": annotations}
        if subset == "test":
            results[name] = found
    return database, results


def fill(workdir: pathlib.Path, steps: int = 1600, classes=CLASSES, videos: int = 18) -> dict:
    """A work folder as a finished run leaves it. Returns the values that a reader must find in the page."""
    rng = np.random.default_rng(7)
    folder = workdir / "prepared" / "thumos14"
    folder.mkdir(parents=True)
    database, results = dataset(rng, classes, videos)
    config = to_dict(Config())
    config["data"]["dataset_dir"], config["train"]["epochs"], config["model"]["num_stages"] = str(folder), 16, 3
    lines = []
    for step in range(10, steps + 1, 10):
        decay = float(np.exp(-step / 500) + 0.12)
        parts = {k: w * decay * float(rng.lognormal(0, 0.12)) for k, w in
                 (("loss_class", 1.6), ("loss_l1", 1.1), ("loss_giou", 1.9), ("loss_action", 0.4))}
        stages = {f"loss_stage_{k}": (1.6 - 0.25 * k) * decay * float(rng.lognormal(0, 0.1)) for k in range(3)}
        lines.append({"step": step, "epoch": step / 100, "loss": sum(parts.values()), **parts, **stages,
                      "learning_rate": 1e-4 if step < 1200 else 1e-5, "grad_norm": float(rng.lognormal(1, 0.4))})
        if step % 400 == 0:
            gain = 1 - float(np.exp(-step / 600))
            lines.append({"step": step, "eval_average_map": 0.52 * gain,
                          **{f"eval_map_{t}": (0.72 - k * 0.1) * gain for k, t in enumerate(TIOUS)}})
    table = {t: 0.71234 - 0.1 * k for k, t in enumerate(TIOUS)}
    per_class = {}
    for label in classes:
        row = {t: float(np.clip(v + rng.normal(0, 0.12), 0, 1)) for t, v in table.items()}
        per_class[label] = row | {"average": sum(row.values()) / len(row)}
    evaluated = {"protocol": "activitynet", "subset": "test", "num_videos": len(results), "map": table,
                 "num_ground_truth": sum(len(v["annotations"]) for v in database.values() if v["subset"] == "test"),
                 "num_detections": sum(map(len, results.values())), "per_class": per_class,
                 "average_map": sum(table.values()) / len(table)}
    summary = {"command": "python train.py --config configs/thumos14.py --workdir runs/a", "hardware": "1 x H200",
               "steps": steps, "seconds_last_start": 5025.0, "parameters": 21_400_000}
    analysed = analyse({"database": database}, {"results": results}, [float(t) for t in TIOUS], "test")
    for name, value in (("config", config), ("results", evaluated), ("analysis", analysed), ("run", summary),
                        ("detections", {"version": "1", "results": results, "external_data": {}})):
        (workdir / f"{name}.json").write_text(json.dumps(value))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ground_truth.json").write_text(json.dumps({"database": database}))
    (folder / "dataset.json").write_text(
        json.dumps({"fps": 10.0, "frame_size": 112, "streams": ["rgb", "flow"], "exceptions": ["video_1: odd"]})
    )
    return {"results": evaluated, "summary": summary, "database": database, "detections": results, "config": config}


def moving_square(video: str, times_sec) -> list[np.ndarray]:
    """Frames in which a square wanders, as a stand-in for decoding."""
    frames = []
    for time in times_sec:
        frame = np.full((112, 160, 3), (70, 90 + len(video) % 40, 110), np.uint8)
        left = int(time * 7) % 130
        frame[45:75, left : left + 30] = (235, 200, 120)
        frames.append(frame)
    return frames
