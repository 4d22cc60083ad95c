"""Where numbers go: metrics.jsonl (one JSON object a line), TensorBoard events, and the terminal."""

import json
import sys
import time
from typing import Any

from tqdm import tqdm

from sptad_jax.files import AnyPath, in_bucket, write_text
from sptad_jax.training.distributed import is_main, say


class MetricWriter:
    """Writes scalars of a training run; a resumed run first drops the lines that it will write again.

    Of several processes the first one writes, the others' writers do nothing.

    Args:
      workdir: folder of the run; receives metrics.jsonl and tensorboard/. In a bucket nothing can be appended to: there
        metrics.jsonl is written again with each line, and there are no TensorBoard events.
      first_step: step at which this process begins; later lines of an earlier process are removed. None: of another
        process, which may be running, nothing is removed.
    """

    def __init__(self, workdir: AnyPath, first_step: int | None):
        self._path, self._main = workdir / "metrics.jsonl", is_main()
        text = self._path.read_text() if self._main and self._path.exists() else ""
        self._lines = text.splitlines()
        if text and first_step is not None:
            self._lines = _lines_before(self._lines, first_step)
            write_text(self._path, "".join(line + "\n" for line in self._lines))
        self._kept = frozenset(self._lines)  # of earlier processes; the lines get those of this one, in a bucket
        self._file: Any = None
        self._board: Any = None
        if not self._main or in_bucket(workdir):
            return
        self._file = open(self._path, "a", buffering=1)  # noqa: SIM115 (closed by close)
        if first_step is None and text and not text.endswith("\n"):  # cut short by a killed process
            self._file.write("\n")
        try:
            self._board = _import_tensorboard().SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        except ImportError:
            print("TensorBoard events are off: install the extra [data] for tensorboardX.", file=sys.stderr)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line {"step": step, **values}, unless an earlier process wrote just that."""
        line = json.dumps({"step": step, **values})
        if not self._main or line in self._kept:  # kept: a finished run that is evaluated again
            return
        if self._file is None:
            self._lines.append(line)
            write_text(self._path, "".join(line + "\n" for line in self._lines))
        else:
            self._file.write(line + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _import_tensorboard() -> Any:
    """tensorboardX without PyTorch, which it imports where it is installed: a second and 190 MB for nothing here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX
    finally:
        if hide:
            del sys.modules["torch"]
    return tensorboardX


def _lines_before(lines: list[str], first_step: int) -> list[str]:
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a line cut short by a killed process
    return kept


class Progress:
    """A bar with rate and time left on a terminal; a plain line for every log interval elsewhere.

    Of several processes the first one shows it.
    """

    def __init__(self, first: int, total: int, unit: str, description: str):
        hidden = not (sys.stderr.isatty() and is_main())
        self._bar = tqdm(
            total=total, initial=first, unit=unit, desc=description, disable=hidden, dynamic_ncols=True
        )
        self._first, self._total, self._done = first, total, first
        self._start = time.monotonic()
        self._description = description

    def update(self, count: int = 1) -> None:
        self._done += count
        self._bar.update(count)

    def line(self, text: str) -> None:
        """Prints a log line that carries progress, rate and time left."""
        seconds = time.monotonic() - self._start
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate > 0 else float("nan")
        self._bar.set_postfix_str(text, refresh=False)
        if self._bar.disable:
            head = f"{self._description} {self._done}/{self._total}"
            say(f"{head}  {rate:.2f}/s  {left / 60:.1f} min left  {text}")

    def close(self) -> None:
        self._bar.close()
