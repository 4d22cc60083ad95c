"""Checkpoints by Orbax: this is the only file that knows it.

A checkpoint of step k holds four items: `model` (params, batch_stats, ema_params), `optimizer` (its state), `data`
(the state of the batch iterator) and `meta` (config, class names, how the frames were made). Together they repeat
the rest of a run bit for bit. `model` and `meta` alone are enough to detect.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from sptad_jax.errors import UserError
from sptad_jax.training.step import TrainState


class Checkpoints:
    """The folder DIR/checkpoints of one run.

    Args:
      directory: folder of the checkpoints, made when missing.
      keep: how many of the newest stay.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        self.directory = directory.resolve()
        options = ocp.CheckpointManagerOptions(preservation_policy=LatestN(keep), cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=_handlers())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: Any, meta: dict[str, Any]) -> None:
        """Begins to write in the background; nothing happens when the step is already there."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_model_part(state)),
                optimizer=ocp.args.StandardSave(state.opt_state),
                data=ocp.args.JsonSave({"state": data_state}),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, state: TrainState) -> tuple[TrainState, Any, dict[str, Any]]:
        """Newest checkpoint in the shape and sharding of `state` -> (state, data_state, meta).

        Raises UserError with the list of paths when the checkpoint is of another architecture.
        """
        step = self.latest_step()
        assert step is not None, "restore() needs a checkpoint; ask latest_step() first"
        self._refuse_other_architecture(step, state)
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(_abstract(_model_part(state))),
            optimizer=ocp.args.StandardRestore(_abstract(state.opt_state)),
            data=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} does not fit the optimiser of the config (clip_norm, "
                "decay_mask and backbone_lr_multiplier of train), or is damaged; use the run's own config, or another "
                "--workdir."
            ) from error
        state = state.replace(
            step=jax.device_put(np.asarray(step, np.int32), state.step.sharding),
            params=restored.model["params"],
            batch_stats=restored.model["batch_stats"],
            ema_params=restored.model["ema_params"],
            opt_state=restored.optimizer,
        )
        return state, restored.data["state"], restored.meta

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

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_for_inference(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest checkpoint of a run -> (variables {"params", "batch_stats"} as NumPy arrays, meta).

    Averaged parameters are taken where the run kept them. `workdir` may be the run or its checkpoints folder.
    Raises UserError when there is no checkpoint.
    """
    directory = workdir / "checkpoints" if (workdir / "checkpoints").is_dir() else workdir
    missing = f"--checkpoint {workdir}: no checkpoint there; give the --workdir of a training run."
    if not directory.is_dir():
        raise UserError(missing)
    with _quiet(), _open_to_read(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(missing)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        try:
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                manager.item_metadata(step)["model"].tree,
            )
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


def _open_to_read(directory: pathlib.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(directory.resolve(), options=options, item_handlers=_handlers())


def _handlers() -> dict[str, Any]:
    """One per item: a new process can read the metadata of an item only if it knows its handler."""
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ("model", "optimizer")}
    return handlers | {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks on a read-only folder from the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _model_part(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats, "ema_params": state.ema_params}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
