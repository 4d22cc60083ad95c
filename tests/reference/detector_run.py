"""The work folder of the smallest detector, as training leaves it."""

import pathlib
from typing import Any

from sptad_jax import config as config_lib
from sptad_jax.training.checkpoints import Checkpoints
from tests.reference.tiny_training import CONFIG, change, new_state

SOURCE = {"fps": 10.0, "frame_size": 20, "max_frames": 0, "flow": None}


def make_run(folder: pathlib.Path, **meta: Any) -> pathlib.Path:
    """Two classes, windows of 16 frames every 8, every candidate kept. `meta` replaces what is stored beside them."""
    config = change(CONFIG, inference={"min_score": 0.0}, data={"stride_test": 8})
    stored = {"config": config_lib.to_dict(config), "classes": ["run", "jump"], "source": SOURCE} | meta
    with Checkpoints(folder / "checkpoints", 1) as checkpoints:
        checkpoints.save(new_state(config), {}, stored)
    return folder
