"""The smallest trainable detector, its batches and its compiled steps, shared by the tests of training."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig, TrainConfig
from sptad_jax.models.sptad import SPTAD
from sptad_jax.training import sharding
from sptad_jax.training.optimizer import make_optimizer
from sptad_jax.training.step import TrainState, create_state, make_train_step
from tests.reference.parameters import draw_variables

NUM_CLASSES = 2
CONFIG = Config(
    model=ModelConfig(
        streams=("rgb",), end_points=("Conv3d_2b_1x1",), width_multiplier=0.0625, pyramid="single", hidden_dim=16,
        num_proposals=3, proposal_init="grid", soi_bins=2, num_heads=2, dynamic_dim=4, ffn_dim=16, num_stages=1),
    data=DataConfig(num_frames=16, crop_size=16, stride_test=16, max_targets=2, flip_prob=0.0),
    train=TrainConfig(batch_size=4, learning_rate=1e-2, ema_decay=0.75, epochs=4, log_every=2, checkpoint_every=3),
    inference=InferenceConfig(batch_size=2),
)  # fmt: skip


def change(config: Config, **groups: dict[str, Any]) -> Config:
    """change(CONFIG, train={"seed": 1}): the config with some options of some groups replaced."""
    new = {name: dataclasses.replace(getattr(config, name), **options) for name, options in groups.items()}
    return dataclasses.replace(config, **new)


def make_batch(seed: int, size: int = 4) -> dict[str, np.ndarray]:
    """Noise with one or two targets a window; the last window is shorter than F."""
    rng = np.random.default_rng(seed)
    num_frames = np.full(size, 16, np.int32)
    num_frames[-1] = 11
    labels = rng.integers(0, NUM_CLASSES, (size, 2)).astype(np.int32)
    valid = np.arange(2) < rng.integers(1, 3, (size, 1))
    clip_labels = np.zeros((size, NUM_CLASSES), np.float32)
    for row in range(size):
        clip_labels[row, labels[row, valid[row]]] = 1
    starts = rng.uniform(0, 0.6, (size, 2))
    return {
        "rgb": rng.integers(0, 256, (size, 16, 16, 16, 3), np.uint8),
        "segments_norm": np.stack([starts, starts + rng.uniform(0.1, 0.4, (size, 2))], -1).astype(np.float32),
        "labels": labels,
        "valid": valid,
        "clip_labels": clip_labels,
        "num_frames": num_frames,
    }


@contextmanager
def quick_compilation() -> Iterator[None]:
    """Compiles without XLA's optimiser, which takes most of the time that tests have."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _variables(model: ModelConfig) -> dict[str, Any]:
    inputs = {"rgb": np.zeros((1, 16, 16, 16, 3), np.float32)}
    variables = draw_variables(SPTAD(model, NUM_CLASSES), inputs, None, train=False)
    return {"params": variables["params"], "batch_stats": variables["batch_stats"]}


def new_state(config: Config) -> TrainState:
    """A state of step 0 with the same parameters whenever it is called, in buffers of its own."""
    variables = jax.tree.map(np.copy, _variables(config.model))
    tx, *_ = make_optimizer(variables["params"], config, 2)
    return sharding.replicate(create_state(variables, tx, config), sharding.make_mesh(config.train.batch_size))


@functools.cache
def compiled_step(config: Config) -> Callable[..., Any]:
    """The step of `config`, compiled once for all tests."""
    tx, *_ = make_optimizer(_variables(config.model)["params"], config, 2)
    mesh = sharding.make_mesh(config.train.batch_size)
    state = new_state(config)
    with quick_compilation():
        batch = sharding.shard_batch(make_batch(0, config.train.batch_size), mesh)
        return make_train_step(config, NUM_CLASSES, tx, mesh).lower(state, batch).compile()  # type: ignore[attr-defined]


def step(config: Config, state: TrainState, batch: dict[str, np.ndarray]) -> tuple[TrainState, dict[str, float]]:
    """One compiled step on a NumPy batch; `state` is used up."""
    mesh = sharding.make_mesh(config.train.batch_size)
    state, metrics = compiled_step(config)(state, sharding.shard_batch(batch, mesh))
    return state, {name: float(value) for name, value in metrics.items()}
