"""Batches of windows, read with Grain: the same order for every number of threads, workers and hosts."""

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from sptad_jax.config import DataConfig, TrainConfig
from sptad_jax.data import datasets, windows
from sptad_jax.data.datasets import Dataset
from sptad_jax.data.windows import VideoTargets, WindowIndex
from sptad_jax.errors import UserError
from sptad_jax.launch import end_with_parent

Batch = dict[str, np.ndarray]
PLACE = ("num_frames", "video_index", "start_frame")
TARGETS = (*PLACE, "segments_norm", "labels", "valid", "clip_labels")


@dataclasses.dataclass(frozen=True)
class WindowSource:
    """Random access to windows, as Grain asks of a source; short videos are padded with zero bytes to F frames."""

    dataset: Dataset
    index: WindowIndex
    length: int  # F
    streams: tuple[str, ...]
    with_targets: bool
    padded_length: int  # windows from len(index) on repeat the last and are marked as not real
    config: DataConfig
    targets: dict[int, VideoTargets] = dataclasses.field(default_factory=dict)  # by video index, for stretched windows

    def __len__(self) -> int:
        return self.padded_length

    def read_stretched(self, position: int, factor: float) -> Batch:
        """A training window of F frames that are `factor` frames apart in the video; flow grows with it."""
        video, start = int(self.index.video_index[position]), int(self.index.start_frame[position])
        found = windows.stretch_window(self.targets[video], start, factor, self.config, len(self.dataset.classes))
        if found is None:
            return self[position]
        frames, index = found
        factor = (frames[-1] - frames[0]) / (self.length - 1)
        window = self.dataset.read_frames(video, int(frames[0]), int(frames[-1]) + 1, self.streams)
        window = {name: value[frames - frames[0]] for name, value in window.items()}
        if "flow" in window:
            grown = (window["flow"].astype(np.float32) - 127.5) * np.float32(factor) + 127.5
            window["flow"] = np.clip(np.rint(grown), 0, 255).astype(np.uint8)
        return window | {name: getattr(index, name)[0] for name in TARGETS}

    def read(self, position: int, factor: float) -> Batch:
        """A training window, stretched where data.speed_jitter asks for it."""
        return self.read_stretched(position, factor) if self.config.speed_jitter else self[position]

    def __getitem__(self, position: Any) -> Batch:
        i = min(int(position), len(self.index) - 1)
        video, start = int(self.index.video_index[i]), int(self.index.start_frame[i])
        count = int(self.index.num_frames[i])
        window: Batch = {}
        for name, frames in self.dataset.read_frames(video, start, start + count, self.streams).items():
            if count < self.length:
                frames = np.pad(frames, [(0, self.length - count), (0, 0), (0, 0), (0, 0)])
            window[name] = frames
        names = TARGETS if self.with_targets else PLACE
        if not self.with_targets:
            window["is_real"] = np.asarray(int(position) < len(self.index))
        return window | {name: np.asarray(getattr(self.index, name)[i]) for name in names}


@dataclasses.dataclass(frozen=True)
class ReadRows:
    """Positions of a whole batch -> the windows of rows first..last-1, stacked.

    A process reads neighbouring rows, so that its windows stand at the same places of the global batch for any number
    of processes: speeds, partners, random crops and flips are drawn by place.
    """

    source: WindowSource
    first: int
    last: int

    def __call__(self, positions: np.ndarray, rng: np.random.Generator) -> Batch:
        jitter, mix_prob = self.source.config.speed_jitter, self.source.config.mix_prob
        factors = np.exp(rng.uniform(-jitter, jitter, (2, len(positions))))
        others = rng.integers(len(self.source.index), size=len(positions))
        is_mixed = rng.random(len(positions)) < mix_prob
        rows = []
        for i in range(self.first, self.last):
            row = self.source.read(int(positions[i]), factors[0, i])
            if is_mixed[i]:
                row = mix_windows(row, self.source.read(int(others[i]), factors[1, i]))
            rows.append(row)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def mix_windows(window: Batch, other: Batch) -> Batch:
    """Two windows shown at once, as a double exposure: the mean of their pictures, the sum of their flows, the targets
    of both. mixup (Zhang et al. 2018, arXiv 1710.09412) at 1/2, with the labels of detection (Zhang et al. 2019,
    arXiv 1902.04103, section 3.1): every target counts in full.

    Both as WindowSource gives them in training, uint8 frames. Returns the first unchanged where they differ in real
    frames or have more targets together than slots; its place (video_index, start_frame) is that of the first.
    """
    counts = int(window["valid"].sum()), int(other["valid"].sum())
    if window["num_frames"] != other["num_frames"] or sum(counts) > len(window["valid"]):
        return window
    mixed = dict(window)
    if "rgb" in window:
        mixed["rgb"] = ((window["rgb"].astype(np.uint16) + other["rgb"] + 1) // 2).astype(np.uint8)
    if "flow" in window:  # whoever moves keeps the speed; 128 is no flow
        mixed["flow"] = np.clip(window["flow"].astype(np.int16) + other["flow"] - 128, 0, 255).astype(np.uint8)
    for name in ("segments_norm", "labels", "valid"):
        mixed[name] = window[name].copy()
        mixed[name][counts[0]:sum(counts)] = other[name][:counts[1]]
    mixed["clip_labels"] = np.maximum(window["clip_labels"], other["clip_labels"])
    return mixed


class TrainingBatches(Iterator[Batch]):
    """An endless iterator of training batches; its state is the number of batches given out.

    Grain's own states do not fit another number of workers or hosts; a count does, since batch k is the same for all:
    the hosts' k-th batches together are rows k*B..(k+1)*B-1 of one sequence. `sequence` says what else that sequence
    depends on, `readers` who reads it; both travel with the count.
    """

    def __init__(self, batches: grain.MapDataset, sequence: dict[str, int], readers: dict[str, int],
                 config: DataConfig) -> None:
        self._batches, self._config, self._sequence, self._readers = batches, config, sequence, readers
        self.num_windows = sequence["windows"]
        self.steps_per_epoch = max(1, self.num_windows // sequence["train.batch_size"])
        self._step = 0
        self._iterator: Any = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(_read_ahead(self._batches[self._step:], self._config))
        try:
            batch = next(self._iterator)
        except RuntimeError as error:  # of Grain
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(f"a process that reads training windows died after batch {self._step} (of data.workers="
                            f"{self._config.workers}; often for lack of memory); start again with the same command, it "
                            "goes on from the newest checkpoint; fewer data.workers need less memory.") from error
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self._step, **self._sequence, **self._readers}

    def set_state(self, state: dict[str, int]) -> str:
        """Goes on as if `state["step"]` batches had been taken; returns a remark for the user, or "".

        Other processes or workers than those of the state read the very same batches. Raises UserError where batch k is
        not what it was: another batch size, seed or number of windows.
        """
        for name, value in self._sequence.items():
            if state.get(name, value) != value:
                raise UserError(f"the checkpoint is of a training with {name} = {state[name]}, here it is {value}: its "
                                "batches would be repeated or skipped; go back to that, or use another --workdir.")
        self.close()
        self._step = int(state["step"])
        changed = [f"{name} {state[name]} -> {value}" for name, value in self._readers.items()
                   if state.get(name, value) != value]
        return f"the same batches are now read by others: {', '.join(changed)}" if changed else ""

    def close(self) -> None:
        """Ends the reading threads and workers."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


class TestBatches:
    """All windows of the test videos in order, once; iterate as often as needed. `len` is the number of batches."""

    __test__ = False  # no test case, whatever its name

    def __init__(self, batches: grain.MapDataset, index: WindowIndex, config: DataConfig) -> None:
        self._batches, self._config = batches, config
        self.index = index
        self.num_windows = len(index)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(_read_ahead(self._batches, self._config))


def make_training_batches(
    dataset: Dataset,
    data_config: DataConfig,
    train_config: TrainConfig,
    streams: Sequence[str],
    process_index: int = 0,
    process_count: int = 1,
) -> TrainingBatches:
    """Shuffled windows of the training subset, for ever, anew in each epoch; fixed by the seed.

    Epochs follow one another without a gap: a batch may hold the last windows of one and the first of the next, so no
    window is left out. Each process receives `train_config.batch_size / process_count` windows a batch.

    Yields rgb uint8 [B, F, H, W, 3], flow uint8 [B, F, H, W, 2] (the streams asked for), segments_norm float32
    [B, M, 2], labels int32 [B, M], valid bool [B, M], clip_labels float32 [B, A], and num_frames, video_index,
    start_frame int32 [B].

    Raises UserError where dataset and config do not fit, or the training subset holds no window.
    """
    datasets.check_fit(dataset, data_config, streams)
    targets = datasets.make_video_targets(dataset, data_config.train_subset)
    if data_config.shuffle_labels:
        targets = windows.shuffle_labels(targets, train_config.seed)
    index = windows.index_windows(targets, data_config, len(dataset.classes), data_config.stride_train)
    if not len(index):
        raise UserError(f"{dataset.path}: no window of the subset '{data_config.train_subset}' holds a target; check "
                        "its annotations, data.window_rule and data.min_tioa.")
    source = WindowSource(dataset, index, data_config.num_frames, tuple(streams), True, len(index), data_config,
                          {video.index: video for video in targets})
    local_size = _split_batch(train_config.batch_size, process_count, "train.batch_size")
    rows = ReadRows(source, process_index * local_size, (process_index + 1) * local_size)
    batches = (grain.MapDataset.range(len(index)).seed(train_config.seed).shuffle().repeat(reseed_each_epoch=True)
               .batch(train_config.batch_size, drop_remainder=True).random_map(rows))
    sequence = {"windows": len(index), "train.batch_size": train_config.batch_size, "train.seed": train_config.seed}
    readers = {"processes": process_count, "data.workers": data_config.workers}
    return TrainingBatches(batches, sequence, readers, data_config)


def make_test_batches(
    dataset: Dataset,
    data_config: DataConfig,
    batch_size: int,
    streams: Sequence[str],
    subset: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TestBatches:
    """Every window of the test subset (or of `subset`) in order, batch_size over all processes.

    The last batch repeats the last window where it would fall short; `is_real` bool [B] marks the others. Yields the
    streams, num_frames, video_index, start_frame and is_real; no targets. Raises UserError where nothing fits.
    """
    datasets.check_fit(dataset, data_config, streams)
    videos = [windows.VideoTargets(dataset.videos[i].name, i, dataset.videos[i].num_frames, np.zeros((0, 2)),
                                   np.zeros(0, np.int32))
              for i in dataset.indices_of(subset or data_config.test_subset)]
    index = windows.index_test_windows(videos, data_config.num_frames, data_config.stride_test)
    local_size = _split_batch(batch_size, process_count, "inference.batch_size")
    padded_length = -(-len(index) // batch_size) * batch_size
    source = WindowSource(dataset, index, data_config.num_frames, tuple(streams), False, padded_length, data_config)
    batches = grain.MapDataset.source(source)[process_index::process_count].batch(local_size)
    return TestBatches(batches, index, data_config)


def _split_batch(batch_size: int, process_count: int, field: str) -> int:
    if batch_size % process_count:
        raise UserError(f"{field} ({batch_size}) must be a multiple of the number of processes ({process_count}).")
    return batch_size // process_count


def _prepare_worker(worker: int, count: int) -> None:
    """Ctrl-C and preemption reach every process of a group; when to end, the one that trains tells its workers, or they
    see that it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def _read_ahead(batches: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Reads in threads, or in worker processes; few batches ahead, since one of the paper's holds 257 MB."""
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=max(2, config.read_threads))
    reader = batches.to_iter_dataset(options)
    if config.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers look at absl's flags and refuse unparsed ones
        reader = reader.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers), _prepare_worker)
    return reader
