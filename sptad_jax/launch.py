"""Commands that run as one of several processes: their options, and how such a process starts and ends.

Nothing here loads JAX before it is needed, so that the help of a command comes at once.
"""

import argparse
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable

from sptad_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--multihost", action="store_true", help="one of several processes that share the work")
    alone = "with --multihost, where JAX cannot find it out itself: "
    parser.add_argument("--coordinator", metavar="HOST:PORT", help=alone + "where process 0 listens")
    parser.add_argument("--num-processes", type=int, metavar="N", help=alone + "how many there are")
    parser.add_argument("--process-id", type=int, metavar="I", help=alone + "which one this is, from 0")


def join(args: argparse.Namespace) -> None:
    """Joins the other processes with --multihost; nothing may have touched a device before.

    Raises UserError where they do not come, or where options are given that need --multihost.
    """
    if args.multihost:
        from sptad_jax.training import distributed

        distributed.start(args.coordinator, args.num_processes, args.process_id)
    elif (args.coordinator, args.num_processes, args.process_id) != (None, None, None):
        raise UserError("--coordinator, --num-processes and --process-id belong to --multihost; give that as well.")


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


def end_with_parent() -> None:
    """Has this worker process end with the one that started it, even where that one is killed and tells it nothing."""

    def watch() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
