"""Both passes of `data_prep.builder` on many machines, by Apache Beam.

The first pass hands out videos, the second record files. Nothing but names and paths goes through Beam: frames pass
from one to the other through the cache in the dataset folder, so all machines must see the videos and that folder
under the same paths. What is decoded already stays so, whoever did it.

TFDS' own ways to write by Beam keep the order and need no TensorFlow, but `GeneratorBasedBuilder` sends every frame
through the runner's shuffle and holds each record file in memory, and `ShardBasedBuilder` adds two stages to the
pipeline for each record file and writes the files of earlier splits again with each later one. So a worker gets the
list of a file's records and serializes them by TFDS' features itself, as the local run does.
"""

import functools
import hashlib
import importlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_prep.decode import FrameSettings, decode_to_cache, is_cached
from data_prep.records import Record, plan_shards, write_metadata, write_shard
from sptad_jax.errors import UserError
from sptad_jax.files import write_json

ERRORS_DIR = "_beam_errors"
POLL_SEC = 5.0  # between two looks at a pipeline that runs elsewhere


def run_jobs(
    jobs: dict[str, tuple[Any, ...]], folder: pathlib.Path, runner: str, options: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Decodes videos on a Beam runner, each with `decode_to_cache(*job)`.

    Args:
      jobs: arguments of `decode_to_cache` for each video name.
      folder: that all machines can write to; sentences about broken videos travel through it.
      runner: of Beam, e.g. "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner".
      options: of the pipeline, e.g. ["--flink_master=host:8081"].

    Yields (name, result of `decode_to_cache`) for every job, in no order; {"error": sentence} where it failed in
    whatever way. Runners that do not block yield while they work.

    Raises UserError where Beam is missing, refuses the runner or an option, or the pipeline as a whole fails.
    """
    errors = folder.absolute() / ERRORS_DIR  # workers start in folders of their own
    waiting = {name: tuple(part.absolute() if isinstance(part, pathlib.Path) else part for part in job)
               for name, job in jobs.items()}
    if not waiting:  # no empty job for the cluster
        return
    shutil.rmtree(errors, ignore_errors=True)  # of a run before; a repaired video must not inherit one
    errors.mkdir(parents=True)
    for _ in _run_pipeline(list(waiting.items()), functools.partial(_decode, errors=errors), runner, options):
        yield from _take_finished(waiting, errors)
    for name in waiting:
        yield name, {"error": f"video '{name}': the {runner} brought no result to {folder}; its machines must see the "
                              "videos and the output folder under the same paths as this one."}


def write_records(
    folder: pathlib.Path, splits: Mapping[str, Sequence[Record]], settings: FrameSettings, runner: str,
    options: Sequence[str] = (),
) -> list[pathlib.Path]:
    """As `data_prep.records.write_records`, with the same bytes, but each record file by a worker of a Beam runner.

    Args:
      folder: the one for records, absent or empty.
      splits: records by split, those of a video next to each other; their cache paths must be absolute.
      settings: of the frames.
      runner: as in `run_jobs`.
      options: as in `run_jobs`.

    Returns: the record files.

    Raises UserError where the pipeline fails.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(folder, splits)
    for _ in _run_pipeline(shards, functools.partial(write_shard, settings=settings), runner, options):
        pass
    for shard in shards:
        if not shard.path.is_file():
            raise UserError(f"{shard.path}: not written by the {runner}; its machines must see the output folder under "
                            "the same path as this one.")
    write_metadata(folder, shards, settings)
    return [shard.path for shard in shards]


def _run_pipeline(
    items: Sequence[Any], work: Callable[[Any], None], runner: str, options: Sequence[str]
) -> Iterator[None]:
    """Calls `work` once or more on each of `items`; yields now and then, and once when all is done."""
    try:
        beam = importlib.import_module("apache_beam")
    except ImportError as error:
        raise UserError(f"Apache Beam cannot be imported ({error}); install the extra, pip install -e '.[data,beam]', "
                        "or leave out --beam-runner.") from None
    try:
        settings = beam.options.pipeline_options.PipelineOptions([*options, f"--runner={runner}"])
        pipeline = beam.Pipeline(options=settings)
        # without the reshuffle a runner may give all items to one worker
        _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)
        result = pipeline.run()
        while not beam.runners.runner.PipelineState.is_terminal(result.state):
            time.sleep(POLL_SEC)
            yield
        result.wait_until_finish()
    except SystemExit:  # argparse has printed what it dislikes
        raise UserError(f"--beam-options: Beam does not accept {' '.join(options)}.") from None
    except Exception as error:  # each runner has its own
        raise UserError(f"the {runner} failed ({error}); mend that and run the command again, decoded videos are "
                        "kept.") from error
    yield


def _decode(item: tuple[str, tuple[Any, ...]], errors: pathlib.Path) -> None:
    """Runs on a worker. Nothing that one video does may end the pipeline, so any failure becomes a file."""
    name, job = item
    try:
        result = decode_to_cache(*job)
    except Exception as error:
        result = {"error": f"video '{name}': {type(error).__name__} on a worker ({error})."}
    if "error" in result:
        write_json(_error_file(name, errors), {"error": result["error"]})


def _take_finished(waiting: dict[str, tuple[Any, ...]], errors: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Moves videos with a result out of `waiting`."""
    for name, job in list(waiting.items()):
        failed = _error_file(name, errors)
        if failed.is_file():
            result = json.loads(failed.read_text(encoding="utf-8"))
        elif is_cached(*job):
            result = decode_to_cache(*job)  # reads what is there
        else:
            continue
        del waiting[name]
        yield name, result


def _error_file(name: str, errors: pathlib.Path) -> pathlib.Path:
    return errors / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"  # names may hold slashes
