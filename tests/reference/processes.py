"""train.py in processes of its own, each with simulated CPU devices: one host or several of them on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# One process may run several trainings one after the other: it imports and compiles once.
PROGRAM = "import json, sys, train; sys.exit(max([train.main(arguments) for arguments in json.loads(sys.argv[1])]))"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
    """Variables for a process with `devices` simulated devices that keeps compiled programs in `cache`."""
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of a test's time
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def start(runs: list[list[str]], cache: pathlib.Path, devices: int = 1, processes: int = 1, program: str = "",
          variables: dict[str, str] | None = None) -> list[subprocess.Popen]:  # fmt: skip
    """Starts train.py with each of `runs` (argument lists), one after the other, in every one of `processes`.

    A `program` instead of train.py takes the arguments of the one run; PROCESS in its environment counts them.
    """
    port = free_port()
    children = []
    for index in range(processes):
        joined = ["--multihost", "--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes),
                  "--process-id", str(index)] if processes > 1 else []  # fmt: skip
        command = [sys.executable, "-c", PROGRAM, json.dumps([[*run, *joined] for run in runs])]
        if len(runs) == 1:  # as a user starts it
            command = [sys.executable, *(["-c", program] if program else ["train.py"]), *runs[0], *joined]
        everything = environment(cache, devices) | {"PROCESS": str(index)} | (variables or {})
        children.append(subprocess.Popen(command, env=everything, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE))  # fmt: skip
    return children


def finish(children: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Waits -> (exit code, standard output, standard error) of each; whatever hangs is killed and fails the test."""
    results = []
    try:
        for child in children:
            out, err = child.communicate(timeout=timeout)
            results.append((child.returncode, out, err))
    finally:
        for child in children:
            child.kill()  # a process that waits for others in vain does not react to SIGTERM
    return results


def run(runs: list[list[str]], cache: pathlib.Path, devices: int = 1, processes: int = 1) -> list[str]:
    """Standard output of each process of a run that must succeed."""
    results = finish(start(runs, cache, devices, processes))
    assert all(code == 0 for code, _, _ in results), [err[-3000:] for _, _, err in results]
    return [out for _, out, _ in results]
