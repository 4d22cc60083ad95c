"""Checkpoints by Orbax: this is the only file that writes by it.

A checkpoint of step k holds four items: `model` (params, batch_stats, ema_params), `optimizer` (its state), `data`
(the state of the batch iterator) and `meta` (config, class names, how the frames were made). Together they repeat
the rest of a run bit for bit. `model` and `meta` alone are enough to detect.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from sptad_jax.errors import UserError
from sptad_jax.files import AnyPath, in_bucket
from sptad_jax.training.distributed import LostProcess, is_main, say
from sptad_jax.training.step import TrainState

UNFINISHED = ".orbax-checkpoint-tmp"  # part of the name of a folder that Orbax is still writing
SET_ASIDE = ".damaged"
# what Orbax and TensorStore raise for files that are missing, cut or changed; AttributeError: an item without metadata
DAMAGE = (AttributeError, ValueError, KeyError, OSError)


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The folder DIR/checkpoints of one run; with several processes, all of them call each method.

    Args:
      directory: folder of the checkpoints, made when missing.
      keep: how many of the newest stay; beside them the one with the highest mAP, of those saved with one.
      read_only: nothing in the folder is touched, since a training may be writing there; `save` is not for it.

    Raises UserError where the folder cannot be made or written.
    """

    def __init__(self, directory: AnyPath, keep: int, *, read_only: bool = False):
        self.directory, self._read_only = _absolute(directory), read_only
        if read_only:
            self.directory.mkdir(exist_ok=True)  # Orbax asks for it
            self._manager = _open_to_read(self.directory)
            return
        unfinished = sorted(path.name.split(".")[0] for path in self.directory.glob(f"*{UNFINISHED}*"))
        if unfinished:
            say(f"{self.directory}: the checkpoint of step {', '.join(unfinished)} was not written to its end and is "
                "removed.")
        best = BestN(get_metric_fn=_average_map, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]), best_fn=_average_map,
            cleanup_tmp_directories=True,
        )  # fmt: skip
        with self._explain_failed_write("folder"):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=_handlers())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self, state: TrainState, data_state: Any, meta: dict[str, Any], average_map: float | None = None
    ) -> None:
        """Begins to write in the background; nothing happens when the step is already there.

        `average_map`: of this state, where it was evaluated. Raises UserError when this or the last write fails.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._explain_failed_write(f"checkpoint of step {step} or the one before"):
            self._manager.save(
                step,
                metrics=None if average_map is None else {"average_map": average_map},
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(_model_part(state)),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    data=ocp.args.JsonSave({"state": data_state}),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def restore(self, state: TrainState) -> tuple[TrainState, Any, dict[str, Any]]:
        """Newest checkpoint that is whole, in the shape and sharding of `state` -> (state, data_state, meta).

        A damaged one that is newer is named on the terminal, and renamed, so that its step can be saved again, unless
        the folder is for reading only.
        Raises UserError with the list of paths when the checkpoint is of another architecture, or where none fits.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        assert steps, "restore() needs a checkpoint; ask latest_step() first"
        problems: list[Exception] = []
        for step in steps:
            problem: Exception | None = None
            try:
                restored = self._read(step, state)
            except DAMAGE as error:
                problem = error
            if multihost_utils.process_allgather(np.array(problem is not None)).any():  # all go on from one step
                problems.append(problem or OSError(f"another process cannot read step {step}"))
                continue
            self._set_aside(steps[: len(problems)], step)
            state = state.replace(
                step=jax.device_put(np.asarray(step, np.int32), state.step.sharding),
                params=restored.model["params"],
                batch_stats=restored.model["batch_stats"],
                ema_params=restored.model["ema_params"],
                opt_state=restored.optimizer,
            )
            return state, restored.data["state"], restored.meta
        raise UserError(
            f"{self.directory}: the checkpoint of step {steps[0]} does not fit the optimiser of the config (clip_norm, "
            "decay_mask and backbone_lr_multiplier of train), or is damaged; use the run's own config, or another "
            "--workdir."
        ) from problems[0]

    def _read(self, step: int, state: TrainState) -> Any:
        self._refuse_other_architecture(step, state)
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(_abstract(_model_part(state))),
            optimizer=ocp.args.StandardRestore(_abstract(state.opt_state)),
            data=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        return self._manager.restore(step, args=args)

    def _set_aside(self, damaged: list[int], good: int) -> None:
        for step in damaged:
            if self._read_only:
                say(f"{self.directory}: the checkpoint of step {step} is damaged; taking that of step {good}.")
                continue
            names = (f"{step}{SET_ASIDE}{number or ''}" for number in itertools.count())
            name = next(name for name in names if not (self.directory / name).exists())
            say(f"{self.directory}: the checkpoint of step {step} is damaged, it is now {name}; going on from step "
                f"{good}.")
            if is_main():
                (self.directory / str(step)).rename(self.directory / name)
        if damaged and not self._read_only:
            multihost_utils.sync_global_devices("checkpoints set aside")
            self._manager.reload()

    def _refuse_other_architecture(self, step: int, state: TrainState) -> None:
        saved = _shapes(self._manager.item_metadata(step)["model"].tree)
        wanted = _shapes(_model_part(state))
        lines = [f"{path}: only in the checkpoint" for path in sorted(saved.keys() - wanted.keys())]
        lines += [f"{path}: not in the checkpoint" for path in sorted(wanted.keys() - saved.keys())]
        lines += [
            f"{path}: {saved[path]} in the checkpoint, {wanted[path]} in the config"
            for path in sorted(saved.keys() & wanted.keys())
            if saved[path] != wanted[path]
        ]
        if lines:
            shown = "\n  ".join(lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else []))
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} is of another architecture than the config; "
                f"use its own config or another --workdir:\n  {shown}"
            )

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, LostProcess):  # the others, without whom no write can end
            self.close()

    def close(self) -> None:
        """Waits for what is still being written."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns when everything saved is on disk. Raises UserError when it could not be written."""
        with self._explain_failed_write("newest checkpoint"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explain_failed_write(self, what: str) -> Iterator[None]:
        try:
            with _quiet():
                yield
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.directory}: the {what} cannot be written ({str(error).strip().splitlines()[0][:300]}); make "
                "room or grant access there and start again with the same command, it goes on from the checkpoint "
                "before."
            ) from error


def load_for_inference(workdir: AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest checkpoint of a run -> (variables {"params", "batch_stats"} as NumPy arrays, meta).

    Averaged parameters are taken where the run kept them. `workdir` may be the run, its checkpoints folder, or one of
    the checkpoints therein (such as that of the best evaluation). Raises UserError when there is no checkpoint.
    """
    directory, chosen = workdir, None
    if workdir.name.isdigit() and (workdir / "model").is_dir():
        directory, chosen = workdir.parent, int(workdir.name)
    directory = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    missing = f"--checkpoint {workdir}: no checkpoint there; give the --workdir of a training run."
    if not directory.is_dir():
        raise UserError(missing)
    with _quiet(), _open_to_read(directory) as manager:
        step = manager.latest_step() if chosen is None else chosen
        if step is None:
            raise UserError(missing)
        try:
            target = _on_one_device(manager.item_metadata(step)["model"].tree)
            restored = manager.restore(
                step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
            )
        except (AttributeError, ValueError, KeyError, OSError) as error:  # AttributeError: an item without metadata
            raise UserError(
                f"--checkpoint {workdir}: the checkpoint of step {step} is damaged; delete {directory / str(step)} to "
                "use the one before."
            ) from error
    model = restored.model
    params = model.get("ema_params") or model["params"]
    return {"params": params, "batch_stats": model.get("batch_stats") or {}}, dict(restored.meta, step=step)


def load_arrays(directory: AnyPath) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint in a folder of checkpoints, of model and optimiser, by its path."""
    with _quiet(), _open_to_read(directory) as manager:
        step = manager.latest_step()
        targets = {name: _on_one_device(manager.item_metadata(step)[name].tree) for name in ("model", "optimizer")}
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        trees = manager.restore(step, args=ocp.args.Composite(**items))
    leaves = jax.tree_util.tree_leaves_with_path({name: trees[name] for name in targets})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _open_to_read(directory: AnyPath) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(_absolute(directory), options=options, item_handlers=_handlers())


def _absolute(directory: AnyPath) -> AnyPath:
    """As Orbax wants it; the address of a bucket is one already, and `resolve` would take it for a folder."""
    return directory if in_bucket(directory) else directory.resolve()


def _handlers() -> dict[str, Any]:
    """One per item: a new process can read the metadata of an item only if it knows its handler."""
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ("model", "optimizer")}
    return handlers | {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks from the terminal: read-only folders, missing metrics, tracebacks of what is raised too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _average_map(metrics: dict[str, float]) -> float:
    return metrics["average_map"]


def _model_part(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats, "ema_params": state.ema_params}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _on_one_device(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
