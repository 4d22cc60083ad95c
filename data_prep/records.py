"""The record files of a dataset: TFDS' format in ArrayRecord files, the same bytes whenever they are written anew."""

import dataclasses
import errno
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer
from tqdm import tqdm

from data_prep.decode import FrameSettings, load_cached
from sptad_jax.config import CHANNELS

CHUNK_FRAMES = 32  # frames of a record; a record is read whole
SHARD_RECORDS = 512  # records of a file


@dataclasses.dataclass(frozen=True)
class Record:
    """Where the content of one record lies: CHUNK_FRAMES frames of a video, fewer at its end."""

    video: str
    cache: pathlib.Path
    chunk: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file of a split."""

    split: str
    path: pathlib.Path
    records: tuple[Record, ...]


def write_records(
    folder: pathlib.Path, splits: Mapping[str, Sequence[Record]], settings: FrameSettings
) -> list[pathlib.Path]:
    """Writes the records of each split, in order, and what TFDS needs to read them.

    `tfds.core.SequentialWriter` would do, but leaves the order of the fields within a record to chance, and
    `download_and_prepare` holds a split in memory for its shuffle even where that is off.

    Args:
      folder: the one for records, absent or empty; its last two names become TFDS' dataset name and version.
      splits: records by split, those of a video next to each other.
      settings: of the frames.

    Returns: the record files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(folder, splits)
    for shard in tqdm(shards, desc="writing", unit="file", disable=None):
        write_shard(shard, settings)
    write_metadata(folder, shards, settings)
    return [shard.path for shard in shards]


def plan_shards(folder: pathlib.Path, splits: Mapping[str, Sequence[Record]]) -> list[Shard]:
    """The files that `write_shard` is to write, in any order and by any process."""
    shards = []
    for split, records in splits.items():
        for index, begin in enumerate(range(0, len(records), SHARD_RECORDS)):
            path = _make_template(folder, split).sharded_filepath(shard_index=index, num_shards=None)
            shards.append(Shard(split, pathlib.Path(path), tuple(records[begin:begin + SHARD_RECORDS])))
    return shards


def write_shard(shard: Shard, settings: FrameSettings) -> None:
    """One record file, written whole or not at all, with one record in memory at a time."""
    serializer = example_serializer.ExampleSerializer(_make_features(settings).get_serialized_info())
    temporary = shard.path.with_name(f".{shard.path.name}.{uuid.uuid4().hex}.tmp")  # two workers may have it
    try:
        _write_records(ArrayRecordWriter(os.fspath(temporary), "group_size:1"), shard, settings, serializer)
        os.replace(temporary, shard.path)
    except RuntimeError as error:  # what ArrayRecord raises where the disk is full
        raise OSError(errno.EIO, " ".join(str(error).split())) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(writer: Any, shard: Shard, settings: FrameSettings, serializer: Any) -> None:
    features = _make_features(settings)
    cache, frames = None, dict[str, np.ndarray]()
    for record in shard.records:
        if record.cache != cache:
            cache, frames = record.cache, load_cached(record.cache, settings)
        begin = record.chunk * CHUNK_FRAMES
        part = {name: np.array(stream[begin:begin + CHUNK_FRAMES]) for name, stream in frames.items()}
        example = features.encode_example({"video": record.video, "chunk": record.chunk, **part})
        # protobuf orders a map by a number that differs from process to process, unless it is asked not to
        writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
    writer.close()


def write_metadata(folder: pathlib.Path, shards: Sequence[Shard], settings: FrameSettings) -> None:
    """TFDS' description of the written files."""
    identity = tfds.core.DatasetIdentity(
        name=folder.parent.name, version=tfds.core.Version(folder.name), data_dir=os.fspath(folder),
        module_name=__name__)
    info = tfds.core.DatasetInfo(
        builder=identity, features=_make_features(settings), disable_shuffling=True,
        description="Frames and optical flow of untrimmed videos, cut into chunks.")
    info.set_file_format("array_record")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        files = [shard for shard in shards if shard.split == split]
        splits.append(tfds.core.SplitInfo(
            name=split, shard_lengths=[len(shard.records) for shard in files],
            num_bytes=sum(shard.path.stat().st_size for shard in files),
            filename_template=_make_template(folder, split)))
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)


def _make_template(folder: pathlib.Path, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        dataset_name=folder.parent.name, data_dir=epath.Path(folder), split=split, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}")


def _make_features(settings: FrameSettings) -> tfds.features.FeaturesDict:
    features: dict[str, Any] = {"video": tfds.features.Text(), "chunk": tfds.features.Scalar(np.int32)}
    for stream in settings.streams:  # as bytes: four times faster to read than the default encoding
        shape = (None, settings.frame_size, settings.frame_size, CHANNELS[stream])
        features[stream] = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
    return tfds.features.FeaturesDict(features)
