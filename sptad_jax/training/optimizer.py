"""AdamW with parameter groups, gradient clipping and learning-rate schedules (paper 4.1, Table 4)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sptad_jax.config import Config, TrainConfig

Array = Any
PyTree = Any
Schedule = Callable[[Any], Array]

FROZEN, BACKBONE, HEAD = "frozen", "backbone", "head"
WARMUP_START = 0.01  # share of the learning rate at step 0 of the warm-up, as Sparse R-CNN's schedule


class Group(NamedTuple):
    """One line of the table of parameter groups."""

    name: str  # "frozen", "backbone" or "head"
    num_parameters: int  # numbers, not tensors
    learning_rate: float  # before schedule; 0 where frozen


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Learning rate of a step, counted from 0, as a function that can be traced.

    "step": times `lr_drop_factor` from the first step of each epoch in `lr_drop_epochs` on (paper 4.1: 1e-4 for 12
    epochs, 1e-5 for the next 4). "cosine": half a cosine from the end of the warm-up to 0 at the last step's end.
    Both begin with `warmup_steps` of linear growth from 1 %. A rate is float32 (float64 under `jax_enable_x64`).
    """
    total = max(math.ceil(config.epochs * steps_per_epoch), 1)
    drops = [round(min(epoch * steps_per_epoch, total)) for epoch in config.lr_drop_epochs]  # a drop beyond: never

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step)
        position = step.astype(float)
        if config.schedule == "step":
            num_drops = jnp.sum(step >= jnp.asarray(drops, step.dtype)) if drops else 0
            factor = jnp.asarray(config.lr_drop_factor, float) ** num_drops
        else:
            done = (position - config.warmup_steps) / max(total - config.warmup_steps, 1)
            factor = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        if config.warmup_steps:
            factor = factor * (WARMUP_START + (1 - WARMUP_START) * jnp.minimum(position / config.warmup_steps, 1.0))
        return jnp.asarray(config.learning_rate * factor, float)

    return schedule


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def label_parameters(params: PyTree, config: Config) -> PyTree:
    """The group of each parameter, as a tree of "frozen", "backbone" or "head" shaped like `params`.

    A module whose name begins with "backbone_" makes the backbone. It is frozen as a whole when
    `train.backbone_lr_multiplier` is 0; its batch-norm scales and biases are when `model.bn_mode` is "frozen".
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = _names(path)
        backbone = any(name.startswith("backbone_") for name in names)
        frozen = backbone and (config.train.backbone_lr_multiplier == 0
                               or (config.model.bn_mode == "frozen" and "batch_norm" in names))
        holds = {FROZEN: frozen, BACKBONE: backbone and not frozen, HEAD: not backbone}
        labels = [group for group, member in holds.items() if member]
        assert len(labels) == 1, f"{'/'.join(names)} belongs to {labels}"
        return labels[0]

    return jax.tree_util.tree_map_with_path(label, params)


def stop_frozen(params: PyTree, config: Config) -> PyTree:
    """Stops gradients into frozen parameters, so that the compiler leaves out their backward pass altogether."""
    labels = label_parameters(params, config)
    return jax.tree.map(lambda x, label: jax.lax.stop_gradient(x) if label == FROZEN else x, params, labels)


def _adamw(config: TrainConfig, schedule: Schedule) -> optax.GradientTransformation:
    """AdamW with decoupled decay (betas 0.9 and 0.999, eps 1e-8), on the tensors that `decay_mask` names."""

    def kernels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)

    mask = kernels if config.decay_mask == "kernels" else None
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
                       optax.add_decayed_weights(config.weight_decay, mask),
                       optax.scale_by_learning_rate(schedule))


def make_optimizer(params: PyTree, config: Config, steps_per_epoch: int,
                   ) -> tuple[optax.GradientTransformation, Schedule, list[Group]]:
    """The optimiser of one run.

    Args:
      params: parameters, or their `jax.ShapeDtypeStruct`s; names decide the group (see `label_parameters`).
      config: `train` and `model.bn_mode`.
      steps_per_epoch: optimiser steps of an epoch; turns epochs into steps.

    Returns:
      The transformation (its `update` needs the parameters), the schedule step -> learning rate of the head, and the
      table of groups. Frozen parameters get updates of exactly 0: a learning rate of 0 alone would keep their Adam
      moments, and decay in other formulations would still move them. Their gradients do not count in the global norm
      that is clipped, else they would shrink everyone's step.
    """
    schedule = make_schedule(config.train, steps_per_epoch)
    multiplier = config.train.backbone_lr_multiplier
    labels = label_parameters(params, config)
    frozen = jax.tree.map(lambda label: label == FROZEN, labels)
    pieces = [optax.masked(optax.set_to_zero(), frozen)]
    if config.train.clip_norm > 0:
        pieces.append(optax.clip_by_global_norm(config.train.clip_norm))
    pieces.append(optax.partition({
        FROZEN: optax.set_to_zero(),
        BACKBONE: _adamw(config.train, lambda step: multiplier * schedule(step)),
        HEAD: _adamw(config.train, schedule),
    }, labels))

    rates = {FROZEN: 0.0, BACKBONE: multiplier * config.train.learning_rate, HEAD: config.train.learning_rate}
    sizes = dict.fromkeys(rates, 0)
    for label, leaf in zip(jax.tree.leaves(labels), jax.tree.leaves(params)):
        sizes[label] += math.prod(leaf.shape)
    groups = [Group(name, sizes[name], rates[name]) for name in rates]
    return optax.chain(*pieces), schedule, groups


def update_ema(ema: PyTree, params: PyTree, decay: float, step: Any) -> PyTree:
    """Exponential moving average of parameters: decay * ema + (1 - decay) * params, leaf by leaf.

    The first updates, counted from 0 by `step`, decay by (1 + step) / (10 + step) at most, as TensorFlow's
    ExponentialMovingAverage(num_updates) does: else a short training would be scored on its random initial parameters.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, value: kept * average + (1 - kept) * value, ema, params)
