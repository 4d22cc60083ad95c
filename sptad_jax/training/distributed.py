"""Many processes that train as one: how they start, which one speaks, when they stop, and how they end."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from sptad_jax.errors import UserError

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


class LostProcess(UserError):
    """A computation failed that all processes share: nothing can be waited for any more."""


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turns the failure of a shared computation into a sentence. Raises LostProcess.

    Where a collective hangs instead of failing, as it does between GPUs, JAX ends this process after
    HEARTBEAT_SECONDS with a message of its own.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcess(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on with the others "
            f"({_first_line(error)}); where one of them ended, its own messages say why; start all of them again with "
            "the same command, they go on from the newest checkpoint."
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


def leave(main: Callable[[], int]) -> None:
    """Runs a program's `main` and ends the process with its exit code.

    After an error it ends at once: an ordinary exit would wait for the other processes, which wait for this one, and
    would let threads that still write complain.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300].rstrip(".") if str(error).strip() else type(error).__name__
