"""A program is compiled once: whatever batches, windows and videos come."""

import jax
import numpy as np
import pytest

pytest.importorskip("av")

from sptad_jax.data.video import write_video
from sptad_jax.inference.detect import detect_video, load_detector
from tests.reference.detector_run import make_run
from tests.reference.tiny_training import CONFIG, make_batch, new_state, step

compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
)


def test_steps_compile_once():
    """A step whose program depends on the number of targets, of real frames, or of steps done."""
    state = new_state(CONFIG)
    state, _ = step(CONFIG, state, make_batch(0))
    compiled.clear()
    for seed in range(1, 4):
        state, _ = step(CONFIG, state, make_batch(seed))
    assert int(state.step) == 4 and not compiled


def test_videos_of_any_length_compile_once(tmp_path):
    """A last batch, a short video or one of many windows that has a shape of its own."""
    detector = load_detector(make_run(tmp_path))
    compiled.clear()
    for count, expected in ((40, True), (9, False), (16, False), (75, False)):
        path = tmp_path / f"{count}.mp4"
        frames = np.random.default_rng(count).integers(0, 256, (count, 24, 24, 3), np.uint8)
        write_video(path, frames, 10, crf=10)
        detect_video(detector, path)
        assert bool(compiled) == expected, count
        compiled.clear()
