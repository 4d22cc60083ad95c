"""The record files of a finished dataset against what dataset.json states; data_prep/check.py checks the rest."""

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tqdm import tqdm

from data_prep.contact_sheet import shorten
from sptad_jax.config import CHANNELS
from sptad_jax.data.datasets import GROUND_TRUTH_FILE, INFO_FILE, RECORDS_DIR, Dataset

AGAIN = "copy it again from where it was made, or delete the folder and prepare it again"


def check_files(dataset: Dataset, quick: bool) -> Iterator[str]:
    """The files of the manifest: presence, size in all, SHA-256, and none beside them."""
    where, checksums = dataset.path / INFO_FILE, dataset.info["checksums"]
    records = pathlib.PurePath(RECORDS_DIR)
    present = {path.relative_to(dataset.path).as_posix() for path in (dataset.path / records).glob("*array_record*")}
    missing = [name for name in checksums if not (dataset.path / name).is_file()]
    yield from (f"{dataset.path / name}: the file is missing; {AGAIN}." for name in missing)
    yield from (f"{dataset.path / name}: {INFO_FILE} does not list this file; delete it."
                for name in sorted(present - checksums.keys()))
    if GROUND_TRUTH_FILE not in checksums:
        yield f"{where}: 'checksums' lacks {GROUND_TRUTH_FILE}; {AGAIN}."
    size = sum((dataset.path / name).stat().st_size for name in present)
    if not missing and size != dataset.info["bytes"]:
        yield f"{where}: states {dataset.info['bytes']} bytes of record files, they have {size}; {AGAIN}."
    if quick:
        return
    for name in tqdm(sorted(checksums.keys() - set(missing)), desc="checksums", unit="file", disable=None):
        try:
            with open(dataset.path / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{dataset.path / name}: the file cannot be read ({error.strerror}); {AGAIN}."
            continue
        if digest != checksums[name]:
            yield f"{dataset.path / name}: its content has changed since it was written (SHA-256); {AGAIN}."


def num_records(dataset: Dataset, num_frames: int) -> int:
    return -(-num_frames // dataset.info["chunk_frames"])


def check_records(dataset: Dataset, quick: bool) -> Iterator[str]:
    """Each record file of each subset: number of records and, unless `quick`, what every record holds."""
    folder = dataset.path / RECORDS_DIR
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = {name: (split.filepaths, split.shard_lengths) for name, split in builder.info.splits.items()}
    except Exception as error:  # whatever TFDS raises for damaged files of its own is the finding
        yield f"{folder}: TFDS' description of the records cannot be read ({reason(error)}); {AGAIN}."
        return
    for subset in dataset.info["subsets"]:
        expected = [(video.name, chunk, min(dataset.info["chunk_frames"], video.num_frames - begin))
                    for video in dataset.videos if video.subset == subset
                    for chunk, begin in enumerate(range(0, video.num_frames, dataset.info["chunk_frames"]))]
        paths, lengths = splits.get(subset, ([], []))
        if sum(lengths) != len(expected):
            yield f"{folder}: subset '{subset}' has {sum(lengths)} records, its videos make {len(expected)}; {AGAIN}."
        begin = 0
        with tqdm(total=sum(lengths), unit="record", desc=f"records of {subset}", disable=None) as bar:
            for path, length in zip(paths, lengths):
                part = expected[begin:begin + length]
                begin += length
                yield from _check_file(pathlib.Path(path), length, part, dataset, builder.info.features, quick, bar)


def _check_file(
    path: pathlib.Path, length: int, expected: list[tuple[str, int, int]], dataset: Dataset, features: Any, quick: bool,
    bar: "tqdm[Any]",
) -> Iterator[str]:
    """One record file; of several bad records of a video the first is told, with the number of the others."""
    if not path.is_file():
        return  # told as missing already
    try:
        source = ArrayRecordDataSource([str(path)])
    except Exception as error:  # array_record has no exceptions of its own
        yield f"{path}: the file cannot be opened ({reason(error)}); {AGAIN}."
        return
    if len(source) != length:
        yield f"{path}: the file has {len(source)} records instead of {length}; {AGAIN}."
    if quick:
        return
    found: dict[str, list[str]] = {}
    with source:
        for number, (name, chunk, num_frames) in zip(range(len(source)), expected):
            try:
                record = features.deserialize_example_np(source[number])
                problem = _describe_misfit(record, name, chunk, num_frames, dataset)
            except Exception as error:  # a damaged record can raise anything
                problem = f"cannot be read ({reason(error)})"
            if problem:
                found.setdefault(name, []).append(f"record {number} (video '{name}', chunk {chunk}) {problem}")
            bar.update()
    for problems in found.values():
        more = f", and {len(problems) - 1} more of this video" if len(problems) > 1 else ""
        yield f"{path}: {problems[0]}{more}; {AGAIN}."


def _describe_misfit(record: dict[str, Any], name: str, chunk: int, num_frames: int, dataset: Dataset) -> str:
    """What is wrong with a record, or ""."""
    if (record["video"].decode(), int(record["chunk"])) != (name, chunk):
        return f"belongs to video '{record['video'].decode()}', chunk {int(record['chunk'])}"
    for stream in dataset.streams:
        shape = (num_frames, dataset.frame_size, dataset.frame_size, CHANNELS[stream])
        if record[stream].shape != shape or record[stream].dtype != np.uint8:
            have = " x ".join(map(str, record[stream].shape))
            return f"has {stream} of {have}, not {' x '.join(map(str, shape))} bytes"
    return ""


def reason(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 120)
