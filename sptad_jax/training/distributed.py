"""Many processes that work as one: how they start, which one speaks, what they tell each other, when they stop."""

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sptad_jax.errors import UserError

STATUS = re.compile("[A-Z_]+: ")  # how the messages of XLA's runtime begin
HEARTBEAT_SECONDS = 30  # a process that was silent for so long is taken for dead, and JAX ends the others


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others; nothing may have touched a device before.

    What is None comes from JAX's own detection (Cloud TPU, Slurm, Open MPI, Kubernetes, JAX_COORDINATOR_ADDRESS).
    Raises UserError where that finds nothing, or the others do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--multihost: the processes could not be joined ({_first_line(error)}); outside of Cloud TPU, Slurm, Open "
            "MPI and Kubernetes give each of them --coordinator HOST:PORT, --num-processes and --process-id."
        ) from error
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices",
        flush=True,
    )


def is_main() -> bool:
    """Whether this process writes metrics, detections and the report, and speaks: the first one, or the only one."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_main():
        print(text, flush=True)


def gather(value: Any) -> list[Any]:
    """What every process gives, in their order; all of them call it, with anything that JSON can hold.

    It travels as bytes, filled up to the longest, so that numbers arrive as they were sent.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    rows = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def end() -> None:
    """Waits for all processes, so that none takes the end of another for its death. Nothing to do for a single one."""
    if jax.distributed.is_initialized():
        gather(None)
        jax.distributed.shutdown()


class LostProcess(UserError):
    """A computation failed that all processes share: nothing can be waited for any more."""


@contextlib.contextmanager
def explain_lost_process(remedy: str) -> Iterator[None]:
    """Turns the failure of a shared computation into a sentence that ends with `remedy`. Raises LostProcess.

    Where a collective hangs instead of failing, as it does between GPUs, JAX ends this process after
    HEARTBEAT_SECONDS with a message of its own.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Small computations are run as they are called, and then the runtime's error arrives as a ValueError.
        from_runtime = isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error))
        if jax.process_count() == 1 or not from_runtime:
            raise
        raise LostProcess(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on with the others "
            f"({_first_line(error)}); where one of them ended, its own messages say why; {remedy}."
        ) from error


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Notes SIGTERM (preemption) and SIGINT (Ctrl-C) while it is entered; a second SIGINT stops at once.

    With several processes a signal to any of them stops all of them at one step: JAX's preemption service, which
    listens to SIGTERM itself, agrees on it.
    """

    def __init__(self) -> None:
        self._noted = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
        self._handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)
            if jax.distributed.is_initialized():
                signal.raise_signal(signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps; every process asks once a step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300].rstrip(".") if str(error).strip() else type(error).__name__
