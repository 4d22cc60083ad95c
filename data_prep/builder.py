"""Decoded frames to a dataset folder: TFDS records in ArrayRecord files, and `dataset.json`.

Two passes. The first decodes each video and computes its flow, in several processes, into OUTPUT/_decoded; it can be
stopped at any time and goes on where it stopped. The second writes the records and takes seconds to minutes; while it
runs, the frames are on the disk twice. `dataset.json` comes last: a folder that has it is complete.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.decode import FrameSettings, decode_to_cache, is_cached, load_cached
from sptad_jax.data.annotations import Video, clip_to_duration, find_classes, to_database
from sptad_jax.data.datasets import CHANNELS, FORMAT_VERSION, GROUND_TRUTH_FILE, INFO_FILE, RECORDS_DIR
from sptad_jax.errors import UserError
from sptad_jax.files import write_json

CHUNK_FRAMES = 32  # frames of a record; a record is read whole
SHARD_RECORDS = 512  # records of a file
CACHE_DIR = "_decoded"


@dataclasses.dataclass(frozen=True)
class DecodedVideo:
    """A video of the first pass: annotations within the decoded length, and where its frames lie."""

    video: Video
    num_frames: int
    fps: float
    cache: pathlib.Path


def build_dataset(
    output: pathlib.Path,
    videos: Sequence[Video],
    paths: dict[str, pathlib.Path | None],
    settings: FrameSettings,
    *,
    classes: Sequence[str] = (),
    exceptions: Sequence[str] = (),
    processes: int = 1,
    allow_missing: bool = False,
    name: str = "",
    fingerprint: str = "",
) -> list[str]:
    """Makes the dataset folder `output` out of video files.

    Args:
      output: the folder to write; one that is finished already and was made in the same way is left as it is.
      videos: their subsets and annotations.
      paths: a file for each video name; None where none was found.
      settings: rate, size and flow.
      classes: names in the order of class indices; empty: the labels in use, sorted.
      exceptions: sentences about the annotations, kept in dataset.json.
      processes: that decode side by side.
      allow_missing: leave out videos that cannot be read, instead of stopping after the first pass.
      name: of the dataset, for reports; the folder's name by default.
      fingerprint: of the annotations and choices that the settings do not hold.

    Returns: all exceptions, as stored.

    Raises UserError where videos cannot be read and allow_missing is False; the others stay decoded for the next run.
    """
    if is_finished(output, settings, fingerprint):
        return list(json.loads((output / INFO_FILE).read_text(encoding="utf-8"))["exceptions"])
    _check_subsets(videos)
    notes = list(exceptions)
    cache_dir = output / CACHE_DIR
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        decoded, problems = _decode_all(videos, paths, cache_dir, settings, processes, notes)
        for sentence in problems:
            print(f"left out: {sentence}", file=sys.stderr)
        if problems and not allow_missing:
            raise UserError(f"{len(problems)} of {len(videos)} videos could not be read (listed above); repair them "
                            "and run the command again, or leave them out with --allow-missing. The others are kept in "
                            f"{cache_dir} and will not be decoded again.")
        if not decoded:
            raise UserError(f"{output}: not one usable video; check --videos, --subsets and the annotations.")
        notes += problems
        info = _describe(decoded, settings, tuple(classes) or find_classes([d.video for d in decoded]), notes,
                         name or output.resolve().name)
        _write_records(output, decoded, settings)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); see that the folder is yours and "
                        "the disk has room, then run the command again.") from error
    write_json(output / GROUND_TRUTH_FILE, {"version": "1", **to_database([d.video for d in decoded])})
    write_json(output / INFO_FILE, info | {"fingerprint": fingerprint})
    shutil.rmtree(cache_dir)
    return notes


def is_finished(output: pathlib.Path, settings: FrameSettings, fingerprint: str = "") -> bool:
    """Whether `output` holds this dataset. Raises UserError where it holds another one."""
    if not (output / INFO_FILE).exists():
        return False
    try:
        info = json.loads((output / INFO_FILE).read_text(encoding="utf-8"))
        before = {name: info[name] for name in settings.describe()}
        before_fingerprint = info["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{output / INFO_FILE} is damaged; delete the folder or choose another --output.") from None
    now = json.loads(json.dumps(settings.describe()))
    for name, value in now.items():
        if before[name] != value:
            raise UserError(f"{output}: holds a dataset made with {name} {before[name]}, not {value}; choose another "
                            "--output, or delete the folder.")
    if before_fingerprint != fingerprint:
        raise UserError(f"{output}: holds a dataset made from other annotations, subsets or classes; choose another "
                        "--output, or delete the folder.")
    return True


def _decode_all(
    videos: Sequence[Video], paths: dict[str, pathlib.Path | None], cache_dir: pathlib.Path, settings: FrameSettings,
    processes: int, notes: list[str],
) -> tuple[list[DecodedVideo], list[str]]:
    """The first pass; answers in the order of `videos`, with a sentence for each that cannot be read."""
    found = {video.name: path for video in videos if (path := paths[video.name]) is not None}
    jobs = {name: (path, cache_dir, settings) for name, path in found.items()}
    results: dict[str, dict[str, Any]] = {}
    todo = {name: job for name, job in jobs.items() if not is_cached(*job)}
    done = {name: decode_to_cache(*job) for name, job in jobs.items() if name not in todo}
    with tqdm(total=len(jobs), initial=len(done), unit="video", desc="decoding", disable=None) as bar:
        frames = 0
        for name, result in _run(todo, processes):
            results[name] = result
            frames += result.get("num_frames", 0)
            bar.update()
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")
    results |= done

    decoded, problems = [], []
    for video in videos:
        result = results.get(video.name, {"error": f"video '{video.name}': no file of that name among the videos; add "
                                                   "it, or take it out of the annotations."})
        if "error" in result:
            problems.append(result["error"])
            continue
        duration_sec = result["duration_sec"]
        rows = clip_to_duration(video.annotations, duration_sec, f"video '{video.name}'", notes)
        usable = dataclasses.replace(video, duration_sec=duration_sec, annotations=rows)
        decoded.append(DecodedVideo(usable, result["num_frames"], result["fps"], pathlib.Path(result["cache"])))
    return decoded, problems


def _run(jobs: dict[str, tuple[Any, ...]], processes: int) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields (name, result) as they come. Fresh processes, since OpenCV and FFmpeg threads do not survive a fork."""
    if processes <= 1 or len(jobs) <= 1:
        for name, job in jobs.items():
            yield name, decode_to_cache(*job)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        names = {pool.submit(decode_to_cache, *job): name for name, job in jobs.items()}
        try:
            for future in concurrent.futures.as_completed(names):
                yield names[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError("a decoding process was ended from outside, perhaps for want of memory; run the command "
                            "again with fewer --processes, finished videos are kept.") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_records(output: pathlib.Path, decoded: Sequence[DecodedVideo], settings: FrameSettings) -> None:
    """One split per subset; a record is CHUNK_FRAMES frames of a video, in order (the last of a video is shorter).

    TFDS' sequential writer streams to disk; `download_and_prepare` holds a split in memory for its shuffle even where
    that is off, and beyond 1 GB spills to files that need TensorFlow.
    """
    records = output / RECORDS_DIR
    shutil.rmtree(records, ignore_errors=True)  # of a run that stopped before dataset.json
    records.mkdir(parents=True)
    features: dict[str, Any] = {"video": tfds.features.Text(), "chunk": tfds.features.Scalar(np.int32)}
    for stream in settings.streams:  # as bytes: four times faster to read than the default encoding
        shape = (None, settings.frame_size, settings.frame_size, CHANNELS[stream])
        features[stream] = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
    identity = tfds.core.DatasetIdentity(
        name=records.parent.name, version=tfds.core.Version(records.name), data_dir=os.fspath(records),
        module_name=__name__)
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), disable_shuffling=True,
        description="Frames and optical flow of untrimmed videos, cut into chunks.")
    writer = tfds.core.SequentialWriter(info, SHARD_RECORDS, overwrite=True, file_format="array_record")
    writer.initialize_splits(_subsets(decoded))
    for item in tqdm(decoded, desc="write", unit="video", disable=None):
        frames = load_cached(item.cache, settings)
        for chunk, begin in enumerate(range(0, item.num_frames, CHUNK_FRAMES)):
            part = {name: np.array(stream[begin:begin + CHUNK_FRAMES]) for name, stream in frames.items()}
            writer.add_examples({item.video.subset: [{"video": item.video.name, "chunk": chunk, **part}]})
    writer.close_all()


def _describe(
    decoded: Sequence[DecodedVideo], settings: FrameSettings, classes: Sequence[str], exceptions: Sequence[str],
    name: str,
) -> dict[str, Any]:
    """The content of dataset.json."""
    subsets = {name: {"num_videos": 0, "num_records": 0} for name in _subsets(decoded)}
    entries = []
    for item in decoded:
        counts = subsets[item.video.subset]
        entries.append({
            "name": item.video.name, "subset": item.video.subset, "num_frames": item.num_frames, "fps": item.fps,
            "duration_sec": item.video.duration_sec, "first_record": counts["num_records"],
            "annotations": [{"segment": list(a.segment_sec), "label": a.label} for a in item.video.annotations],
        })
        counts["num_videos"] += 1
        counts["num_records"] += -(-item.num_frames // CHUNK_FRAMES)
    return {"format_version": FORMAT_VERSION, "name": name, **settings.describe(), "chunk_frames": CHUNK_FRAMES,
            "classes": list(classes), "subsets": subsets, "videos": entries, "exceptions": list(exceptions)}


def _subsets(decoded: Sequence[DecodedVideo]) -> list[str]:
    return list(dict.fromkeys(item.video.subset for item in decoded))


def _check_subsets(videos: Sequence[Video]) -> None:
    for video in videos:
        if not re.fullmatch(r"[A-Za-z0-9_]+", video.subset) or video.subset == "all":
            raise UserError(f"video '{video.name}': the subset '{video.subset}' becomes the name of a TFDS split, so "
                            "it must be of letters, digits and underscores, and not 'all'; rename it there.")

