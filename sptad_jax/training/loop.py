"""The training loop: evaluate the old state, save state and iterator, next batch, step, log the previous step."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from sptad_jax.config import Config
from sptad_jax.errors import UserError
from sptad_jax.training.checkpoints import Checkpoints
from sptad_jax.training.distributed import StopSignal
from sptad_jax.training.metrics import MetricWriter, Progress
from sptad_jax.training.sharding import shard_batch
from sptad_jax.training.step import TrainState


class BatchIterator(Protocol):
    """An endless iterator of batches whose position can be stored as JSON."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> str: ...


def train(
    state: TrainState,
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    batches: BatchIterator,
    *,
    config: Config,
    mesh: Mesh,
    steps_per_epoch: int,
    schedule: Callable[[int], Any],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    meta: dict[str, Any],
    video_names: list[str],
    evaluate: Callable[[TrainState], dict[str, Any]],
) -> TrainState:
    """Runs from the state's step to the last one of the config, or to the one after which a signal asks to stop.

    It leaves a checkpoint of that step. The order matters for exact resume: a checkpoint is taken before the next batch
    is drawn, so state and iterator agree. Losses are read one step late, while the device already works on the next
    one. An evaluated state is saved as well, since the best one is kept; a signal comes before an evaluation.

    Raises UserError when a loss or gradient stops being a number, before the bad state can be saved.
    """
    step, total = int(state.step), num_steps(config, steps_per_epoch)
    evaluate_every = max(1, round(config.train.evaluate_every * steps_per_epoch)) if config.train.evaluate_every else 0
    first = step
    progress = Progress(step, total, "step", "train")
    recorder = _Recorder(config, writer, progress, steps_per_epoch, schedule, video_names)
    pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
    with StopSignal() as stop:
        while step < total:
            if step > first:
                if stop.reached(step):
                    break
                evaluation_due = evaluate_every > 0 and step % evaluate_every == 0
                checkpoint_due = evaluation_due or step % config.train.checkpoint_every == 0
                if pending and checkpoint_due:
                    recorder.record(*pending)  # a state that is not finite must be neither evaluated nor saved
                    pending = None
                average_map = None
                if evaluation_due:
                    results = evaluate(state)
                    writer.write(step, summarise(results))
                    average_map = results["average_map"]
                if checkpoint_due:
                    checkpoints.save(state, batches.get_state(), meta, average_map)
            batch = next(batches)
            state, metrics = train_step(state, shard_batch(_for_device(batch), mesh))
            step += 1
            if pending:
                recorder.record(*pending)
            pending = (step, metrics, batch["video_index"])
            progress.update()
        if pending:
            recorder.record(*pending)
        progress.close()
        checkpoints.save(state, batches.get_state(), meta)
        checkpoints.wait()
    return state


def num_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimisation steps of the whole training."""
    return max(1, round(config.train.epochs * steps_per_epoch))


def summarise(results: dict[str, Any]) -> dict[str, float]:
    """The scalars of an evaluation that are worth a line in metrics.jsonl."""
    values = {f"eval_map_{tiou}": value for tiou, value in results["map"].items()}
    return {"eval_average_map": results["average_map"], **values}


def _for_device(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves on the host what the step does not read."""
    return {name: value for name, value in batch.items() if name not in ("video_index", "start_frame", "is_real")}


class _Recorder:
    """Checks every step's numbers and writes their mean once per log interval."""

    def __init__(self, config: Config, writer: MetricWriter, progress: Progress, steps_per_epoch: int, schedule: Any,
                 video_names: list[str]):  # fmt: skip
        self._config, self._writer, self._progress = config, writer, progress
        self._steps_per_epoch, self._schedule, self._video_names = steps_per_epoch, schedule, video_names
        self._sums: dict[str, float] = {}
        self._count = 0

    def record(self, step: int, metrics: dict[str, jax.Array], video_index: np.ndarray) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._refuse_non_finite(step, values, video_index)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self._config.train.log_every == 0:
            means = {name: total / self._count for name, total in self._sums.items()}
            # The schedule counts updates from 0: step k was made with the rate of k - 1.
            means |= {"epoch": step / self._steps_per_epoch, "learning_rate": float(self._schedule(step - 1))}
            self._writer.write(step, means)
            self._progress.line(f"loss {means['loss']:.3f}")
            self._sums, self._count = {}, 0

    def _refuse_non_finite(self, step: int, values: dict[str, float], video_index: np.ndarray) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        parts = [name for name in bad if name not in ("loss", "grad_norm")] or bad
        videos = ", ".join(sorted({self._video_names[i] for i in video_index.tolist()}))
        raise UserError(
            f"training stopped at step {step}: {', '.join(parts)} became {values[parts[0]]} on windows of {videos}; "
            "the last checkpoint is good: lower train.learning_rate or train.clip_norm, or look at these videos, "
            "and run again."
        )

