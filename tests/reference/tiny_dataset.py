"""A dataset of four tiny videos, made as a user would make one."""

import json
import pathlib

import numpy as np

from data_prep.custom import prepare
from data_prep.decode import FrameSettings
from sptad_jax.data.video import write_video

SETTINGS = FrameSettings(fps=10, frame_size=36, flow="dis")
VIDEOS = {  # name -> subset, frames, [(start_sec, end_sec, label)]
    "long": ("training", 75, [(0.5, 2.0, "run"), (3.0, 6.5, "jump")]),
    "short": ("training", 20, [(0.0, 1.5, "jump")]),
    "middle": ("training", 40, [(1.0, 3.5, "run"), (1.0, 3.5, "jump")]),
    "unseen": ("testing", 70, [(2.0, 4.0, "run")]),
}


def write_videos(folder: pathlib.Path) -> None:
    """Videos at 10 fps of a moving bright square; no two frames are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (_, count, _)) in enumerate(VIDEOS.items()):
        frames = np.random.default_rng(number).integers(0, 60, (36, 36, 3), np.uint8)[None].repeat(count, axis=0)
        for t in range(count):
            x = t % 26
            frames[t, 5 + number:15 + number, x:x + 10] = 100 + 2 * t
        write_video(folder / f"{name}.mp4", frames, 10, crf=5)


def write_annotations(path: pathlib.Path) -> None:
    database = {name: {"subset": subset, "duration": count / 10,
                       "annotations": [{"segment": [a, b], "label": label} for a, b, label in rows]}
                for name, (subset, count, rows) in VIDEOS.items()}
    path.write_text(json.dumps({"database": database}))


def make_tiny_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Writes videos and annotations below `folder` and prepares them; returns the dataset folder."""
    write_videos(folder / "videos")
    write_annotations(folder / "annotations.json")
    prepare(folder / "videos", folder / "annotations.json", folder / "dataset", SETTINGS)
    return folder / "dataset"
