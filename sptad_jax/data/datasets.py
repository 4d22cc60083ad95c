"""A prepared dataset on disk: decoded frames in chunk records, and `dataset.json` that describes them.

data_prep writes the folder: TFDS records (ArrayRecord, read here without TensorFlow), `ground_truth.json` and, last,
`dataset.json`, whose presence says that the rest is complete, and which holds the checksum of each file.
"""

import dataclasses
import functools
import json
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from sptad_jax.config import CHANNELS, DataConfig
from sptad_jax.data.annotations import Annotation
from sptad_jax.data.windows import VideoTargets
from sptad_jax.errors import UserError

FORMAT_VERSION = 2
INFO_FILE = "dataset.json"
GROUND_TRUTH_FILE = "ground_truth.json"
RECORDS_DIR = os.path.join("records", "1.0.0")  # TFDS: builder name and version
# TFDS imports parts of itself at their first use, and on Python 3.11 two threads that do so can wait for each other
# without end: one holds the lock of a module, the other that of functools.cached_property.
_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """One video of a dataset; its frames are the chunk records from `first_record` on in the split of its subset."""

    name: str
    subset: str
    num_frames: int
    fps: float  # stored frames per second; differs between videos where each is resampled to a fixed length
    duration_sec: float
    first_record: int
    annotations: list[Annotation]
    source_fps: float = 0.0  # frames per second of the file, on average
    source_frames: int = 0  # frames of the file


@dataclasses.dataclass
class Dataset:
    """Random access to the frames of a prepared dataset; may be pickled into worker processes.

    Datasets of at most `cache_bytes` are kept in memory as they are read, so that later epochs skip decompression.
    """

    path: pathlib.Path
    info: dict[str, Any]  # dataset.json
    videos: list[StoredVideo]
    classes: tuple[str, ...]  # in the order of labels and logits
    cache_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        self._sources: dict[str, Any] = {}
        self._cache: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # open files do not travel, and each of several processes would hold the whole dataset
        return {**self.__dict__, "_sources": {}, "_cache": {}, "cache_bytes": 0}

    @property
    def frame_size(self) -> int:
        return int(self.info["frame_size"])

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(self.info["streams"])

    @property
    def ground_truth_path(self) -> pathlib.Path:
        return self.path / GROUND_TRUTH_FILE

    @property
    def source(self) -> dict[str, Any]:
        """How frames were made, for new videos to follow: as `sptad_jax.data.streams.read_streams` takes it."""
        return {name: self.info[name] for name in ("fps", "max_frames", "frame_size", "fit", "flow")
                if name in self.info}

    def indices_of(self, subset: str) -> list[int]:
        """Indices into `videos`, in order. Raises UserError for a subset that the dataset has not."""
        indices = [i for i, video in enumerate(self.videos) if video.subset == subset]
        if not indices:
            have = ", ".join(self.info["subsets"])
            raise UserError(f"{self.path}: no videos of the subset '{subset}', it has {have}; set data.train_subset "
                            "and data.test_subset to these.")
        return indices

    def read_frames(
        self, video_index: int, start: int, stop: int, streams: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Frames start..stop-1 of a video: {"rgb": uint8 [n, H, W, 3], "flow": uint8 [n, H, W, 2]}.

        Only the chunk records that overlap are read. `streams` defaults to all; start and stop must lie in the video.
        """
        video = self.videos[video_index]
        if not 0 <= start < stop <= video.num_frames:
            raise ValueError(f"frames {start}..{stop} of '{video.name}', which has {video.num_frames}")
        chunk_frames = self.info["chunk_frames"]
        size = self.frame_size
        streams = self.streams if streams is None else streams
        frames = {name: np.empty((stop - start, size, size, CHANNELS[name]), np.uint8) for name in streams}
        for chunk in range(start // chunk_frames, (stop - 1) // chunk_frames + 1):
            record = self._read_record(video.subset, video.first_record + chunk)
            begin = chunk * chunk_frames
            low, high = max(start, begin), min(stop, begin + chunk_frames)
            for name in streams:
                frames[name][low - start:high - start] = record[name][low - begin:high - begin]
        return frames

    def _read_record(self, subset: str, index: int) -> dict[str, np.ndarray]:
        record = self._cache.get((subset, index))
        if record is None:
            try:
                record = self._read_stored(subset, index)
            except RuntimeError as error:  # of array_record: a file that is not there, is cut, or fails its checksum
                raise UserError(f"{self.path / RECORDS_DIR}: record {index} of the subset '{subset}' cannot be read "
                                f"({error}); `python -m data_prep.check {self.path}` lists what is damaged.") from None
            if self.cache_bytes and self._num_bytes <= self.cache_bytes:
                self._cache[subset, index] = record
        return record

    @functools.cached_property
    def _num_bytes(self) -> int:
        frame_bytes = self.frame_size**2 * sum(CHANNELS[name] for name in self.streams)
        return sum(video.num_frames for video in self.videos) * frame_bytes

    def _read_stored(self, subset: str, index: int) -> dict[str, np.ndarray]:
        if subset not in self._sources:
            with _OPENING:
                if subset not in self._sources:  # another thread may have opened it meanwhile
                    source = self._open(subset)
                    source[index]  # the first record imports, too
                    self._sources[subset] = source
        return self._sources[subset][index]  # type: ignore[no-any-return]

    def _open(self, subset: str) -> Any:
        import tensorflow_datasets as tfds  # takes a while to import, and TensorFlow itself is never touched

        try:
            return tfds.builder_from_directory(os.fspath(self.path / RECORDS_DIR)).as_data_source(split=subset)
        except (OSError, ValueError, AssertionError, KeyError) as error:
            raise UserError(f"{self.path / RECORDS_DIR}: the records cannot be opened ({error}); prepare the "
                            "dataset again.") from None


def open_dataset(path: str | os.PathLike[str], config: DataConfig | None = None) -> Dataset:
    """Opens a folder that data_prep wrote.

    With `config`, its `classes` (where given) fix the order of classes and must be the dataset's.
    Raises UserError where the folder is missing, unfinished, damaged, of another version, or does not fit the config.
    """
    folder = pathlib.Path(path)
    if not os.fspath(path) or not folder.is_dir():
        raise UserError(f"data.dataset_dir '{path}' is no folder; prepare one with `python -m data_prep.custom --help` "
                        "and give its path.")
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder / INFO_FILE} is missing: the folder is no prepared dataset, or its preparation did "
                        "not finish; run the data_prep command again, it goes on where it stopped.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{folder / INFO_FILE} is damaged; prepare the dataset again.") from None
    if not isinstance(info, dict) or info.get("format_version") != FORMAT_VERSION:
        found = info.get("format_version", "unknown") if isinstance(info, dict) else "unknown"
        raise UserError(f"{folder / INFO_FILE} is of format {found}, this version reads {FORMAT_VERSION}; delete "
                        "the folder and prepare the dataset again.")
    videos = []
    try:
        for entry in info["videos"]:
            rows = [Annotation((row["segment"][0], row["segment"][1]), row["label"]) for row in entry["annotations"]]
            videos.append(StoredVideo(**{**entry, "annotations": rows}))
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / INFO_FILE} is damaged (videos: {error}); prepare the dataset again.") from None
    classes = tuple(info["classes"])
    if config is not None and config.classes:
        _check_classes(folder, classes, config.classes)
        classes = config.classes
    return Dataset(folder, info, videos, classes)


def _check_classes(folder: pathlib.Path, have: Sequence[str], expected: Sequence[str]) -> None:
    unexpected, absent = sorted(set(have) - set(expected)), sorted(set(expected) - set(have))
    if unexpected or absent:
        what = f"has '{unexpected[0]}', which is not in" if unexpected else f"lacks '{absent[0]}', which is in"
        raise UserError(f"{folder}: the dataset {what} data.classes; correct data.classes, or leave it empty to take "
                        "those of the dataset.")


def check_fit(dataset: Dataset, config: DataConfig, streams: Sequence[str]) -> None:
    """Refuses a dataset that cannot serve a config: streams and crop. Raises UserError."""
    missing = [name for name in streams if name not in dataset.streams]
    if missing:
        raise UserError(f"{dataset.path}: the dataset holds no {missing[0]} frames; prepare it with --flow tvl1, or "
                        f"set model.streams to {json.dumps(dataset.streams)}.")
    if config.crop_size > dataset.frame_size:
        raise UserError(f"data.crop_size ({config.crop_size}) is larger than the frames of {dataset.path} "
                        f"({dataset.frame_size}); lower it, or prepare the dataset with a larger --frame-size.")


def make_video_targets(dataset: Dataset, subset: str) -> list[VideoTargets]:
    """Instances of a subset in frames and class indices, ready for windows. Raises UserError for a foreign label."""
    class_index = {name: i for i, name in enumerate(dataset.classes)}
    targets = []
    for i in dataset.indices_of(subset):
        video = dataset.videos[i]
        foreign = [row.label for row in video.annotations if row.label not in class_index]
        if foreign:
            raise UserError(f"{dataset.path / INFO_FILE}: video '{video.name}' has the label '{foreign[0]}', which is "
                            "not among its 'classes'; prepare the dataset again.")
        targets.append(VideoTargets(
            name=video.name, index=i, num_frames=video.num_frames,
            segments_frame=np.array([row.segment_sec for row in video.annotations]).reshape(-1, 2) * video.fps,
            labels=np.array([class_index[row.label] for row in video.annotations], np.int32)))
    return targets
