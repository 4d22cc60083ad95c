"""Overlapping test windows share the backbones' work (`inference.share_backbone`): each frame passes through them once.

Windows that begin at a multiple of F frames are passes: they go through the backbones as ever. Of a window between two
passes, the first steps of every end point are the last ones of the pass before it, the others are the first ones of
the pass after it; pyramid and heads then run as ever. That is an approximation. Convolutions are padded with zeros at
both ends of a pass, so steps near the seam see zeros in the place of frames, and those near the window's ends see
frames in the place of zeros. A step of Mixed_3c, Mixed_4f and Mixed_5c sees 19, 63 and 99 frames; where none of them
lies beyond the seam or the window's ends, features are those of the window's own pass.

A window without a pass on either side is a pass itself, and exact: the last one of a video that is not a multiple of
the test stride away from its start, and the one of a video that is shorter than a window. No more is held than the
frames of a batch and of the windows between two passes, and the features of two batches.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

Batch = dict[str, np.ndarray]
Features = Any  # a tree of arrays [B, T_l, ...]
Output = dict[str, jax.Array]


def join(first: jax.Array, second: jax.Array, shift: jax.Array, length: int) -> jax.Array:
    """Features of the windows that begin `shift` frames after the first of two passes which follow each other.

    Args:
      first, second: [B, T, ...], an end point of passes of `length` frames.
      shift: int [B], frames, a multiple of length / T; with 0 the answer is `first`.

    Returns [B, T, ...].
    """
    steps = first.shape[1]
    both = jax.numpy.concatenate([first, second], axis=1)
    starts = shift // (length // steps)
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, steps))(both, starts)


@dataclasses.dataclass(frozen=True)
class SharedForward:
    """A forward pass in two parts, and the order in which they run over the windows of videos.

    extract: (variables, batch of windows) -> features. finish: (variables, features, features, rows) -> predictions;
    rows has int32 [B] "first" and "second" (which passes, counted through both features), "shift" (frames from the
    beginning of the first, see `join`) and "num_frames". length: F. As a function it gives each window its own pass.
    """

    extract: Callable[[Any, Batch], Features]
    finish: Callable[[Any, Features, Features, Batch], Output]
    length: int

    def __call__(self, variables: Any, batch: Batch) -> Output:
        features = self.extract(variables, batch)
        own = np.arange(len(batch["num_frames"]), dtype=np.int32)
        rows = {"first": own, "second": own, "shift": 0 * own, "num_frames": batch["num_frames"]}
        return self.finish(variables, features, features, rows)

    def run(self, variables: Any, batches: Iterable[Batch]) -> Iterator[tuple[Output, Batch]]:
        """Windows in order of videos and time -> predictions of as many, in the same order, in batches of that size.

        What comes with the predictions is what came with the windows, without the frames.
        """
        batches = iter(batches)
        head = next(batches)
        size, begin = len(head["is_real"]), -len(head["is_real"])  # the number of the first pass of `new`
        old, new = None, None
        passes: list[Batch] = []  # not yet run
        waiting: list[Batch] = []  # rows for `finish`

        def finish(rows: list[Batch]) -> tuple[Output, Batch]:
            batch = _stack(rows, size)
            sources = {name: batch.pop(name) - (begin - size) for name in ("first", "second")}
            sources |= {"shift": batch.pop("shift"), "num_frames": batch["num_frames"]}
            return self.finish(variables, new if old is None else old, new, sources), batch

        for row, frames in _plan(_rows(itertools.chain([head], batches)), self.length):
            waiting.append(row)
            passes += [frames] if frames else []
            if len(passes) == size:
                old, new, begin = new, self.extract(variables, _stack(passes, size)), begin + size
                passes = []
                while len(waiting) >= size:  # fewer are left over: they look back no further than `new`
                    yield finish(waiting[:size])
                    waiting = waiting[size:]
        if passes:
            old, new, begin = new, self.extract(variables, _stack(passes, size)), begin + size
        for i in range(0, len(waiting), size):
            yield finish(waiting[i:i + size])


def _rows(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for i in range(len(batch["is_real"])):
            yield {name: value[i] for name, value in batch.items()}


def _plan(rows: Iterable[Batch], length: int) -> Iterator[tuple[Batch, Batch | None]]:
    """Windows in order -> what `finish` takes of each, and its frames if it is a pass."""
    between: list[Batch] = []  # windows after the last pass at a multiple of `length`, until the next one is seen
    count, last, beyond = 0, 0, (-1, 0)  # passes so far; that pass; the video and frame where the next one would begin

    def make_pass(row: Batch) -> tuple[Batch, Batch]:
        nonlocal count
        count += 1
        return _source(row, count - 1, count - 1, 0), {k: v for k, v in row.items() if v.ndim or k == "num_frames"}

    for row in rows:
        video, start = int(row.get("video_index", 0)), int(row["start_frame"])
        if not row["is_real"] and count:  # the last window over again, whatever it finds is thrown away
            yield from map(make_pass, between)
            between = []
            yield _source(row, count - 1, count - 1, 0), None
        elif start % length == 0:
            if beyond == (video, start):
                for other in between:
                    yield _source(other, last, count, int(other["start_frame"]) - start + length), None
            else:
                yield from map(make_pass, between)
            between, last, beyond = [], count, (video, start + length)
            yield make_pass(row)
        elif beyond[0] == video and beyond[1] - length < start < beyond[1]:
            between.append(row)
        else:
            yield from map(make_pass, [*between, row])
            between = []
    yield from map(make_pass, between)


def _source(row: Batch, first: int, second: int, shift: int) -> Batch:
    places = {name: np.asarray(value) for name, value in row.items() if not value.ndim}
    numbers = {"first": first, "second": second, "shift": shift}
    return places | {name: np.asarray(number, np.int32) for name, number in numbers.items()}


def _stack(rows: list[Batch], size: int) -> Batch:
    """Rows -> a batch of `size`, filled up with the same over again, which are not real."""
    batch = {name: np.stack([rows[i % len(rows)][name] for i in range(size)]) for name in rows[0]}
    if "is_real" in batch:
        batch["is_real"][len(rows):] = False
    return batch


def run_batches(
    forward: Callable[[Any, Batch], Output], variables: Any, batches: Iterable[Batch]
) -> Iterator[tuple[Output, Batch]]:
    """Predictions of all windows with what says which window they are of: {"start_frame", "is_real", ...} [B]."""
    if isinstance(forward, SharedForward):
        yield from forward.run(variables, batches)
    else:
        for batch in batches:
            yield forward(variables, batch), batch
