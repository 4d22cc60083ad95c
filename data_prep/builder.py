"""Decoded frames to a dataset folder: TFDS records in ArrayRecord files, and `dataset.json`.

Two passes. The first decodes each video and computes its flow, in several processes, into OUTPUT/_decoded; it can be
stopped or killed at any time and goes on where it stopped. The second writes the records and takes seconds to minutes;
while it runs, the frames are on the disk twice. `dataset.json` comes last: a folder that has it is complete, and holds
the same bytes however often it was begun.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from data_prep import beam
from data_prep.arrays import find_arrays
from data_prep.decode import UNFINISHED, FrameSettings, decode_to_cache, is_cached
from data_prep.records import CHUNK_FRAMES, Record, write_records
from sptad_jax.data.annotations import Video, clip_to_duration, find_classes, to_database
from sptad_jax.data.datasets import FORMAT_VERSION, GROUND_TRUTH_FILE, INFO_FILE, RECORDS_DIR
from sptad_jax.errors import UserError
from sptad_jax.files import write_json
from sptad_jax.launch import end_with_parent

CACHE_DIR = "_decoded"


@dataclasses.dataclass(frozen=True)
class DecodedVideo:
    """A video of the first pass: annotations within the decoded length, and where its frames lie."""

    video: Video
    num_frames: int
    fps: float
    source_fps: float
    source_frames: int
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
    beam_runner: str = "",
    beam_options: Sequence[str] = (),
) -> list[str]:
    """Makes the dataset folder `output` out of video files.

    Args:
      output: the folder to write; one that is finished already and was made in the same way is left as it is.
      videos: their subsets and annotations.
      paths: a file for each video name; None where none was found. Not used where settings.rgb_from names arrays.
      settings: rate, size and flow.
      classes: names in the order of class indices; empty: the labels in use, sorted.
      exceptions: sentences about the annotations, kept in dataset.json.
      processes: that decode side by side.
      allow_missing: leave out videos that cannot be read, instead of stopping after the first pass.
      name: of the dataset, for reports; the folder's name by default.
      fingerprint: of the annotations and choices that the settings do not hold.
      beam_runner: of Apache Beam, which then does the work instead of `processes` here; see data_prep.beam.
      beam_options: of its pipelines.

    Returns: all exceptions, as stored.

    Raises UserError where videos cannot be read and allow_missing is False; the others stay decoded for the next run.
    """
    cache_dir = (output / CACHE_DIR).absolute()  # Beam's workers start elsewhere
    if is_finished(output, settings, fingerprint):
        shutil.rmtree(cache_dir, ignore_errors=True)  # of a run that was killed on its very last steps
        return list(json.loads((output / INFO_FILE).read_text(encoding="utf-8"))["exceptions"])
    _check_subsets(videos)
    notes = list(exceptions)
    jobs, problems_of = _make_jobs(videos, paths, cache_dir, settings)
    run = functools.partial(_run, processes=processes)
    write = write_records
    if beam_runner:
        run = functools.partial(beam.run_jobs, folder=cache_dir, runner=beam_runner, options=beam_options)
        write = functools.partial(beam.write_records, runner=beam_runner, options=beam_options)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_litter(output, cache_dir)
        decoded, problems = _decode_all(videos, jobs, problems_of, run, notes)
        for sentence in problems:
            print(f"left out: {sentence}", file=sys.stderr)
        if problems and not allow_missing:
            raise UserError(f"{len(problems)} of {len(videos)} videos could not be read (listed above); repair them "
                            "and run the command again, or leave them out with --allow-missing. The others are kept in "
                            f"{cache_dir} and will not be decoded again.")
        if not decoded:
            raise UserError(f"{output}: not one usable video; check --videos, --subsets and the annotations.")
        notes += problems
        files = _write_all_records(output.absolute(), decoded, settings, write)
        write_json(output / GROUND_TRUTH_FILE, {"version": "1", **to_database([d.video for d in decoded])})
        info = _describe(decoded, settings, tuple(classes) or find_classes([d.video for d in decoded]), notes,
                         name or output.resolve().name)
        write_json(output / INFO_FILE, info | {"fingerprint": fingerprint} | _measure_files(output.absolute(), files))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); see that the folder is yours and "
                        "the disk has room, then run the command again.") from error
    shutil.rmtree(cache_dir)
    return notes


def is_finished(output: pathlib.Path, settings: FrameSettings, fingerprint: str = "") -> bool:
    """Whether `output` holds this dataset. Raises UserError where it holds another one."""
    if not (output / INFO_FILE).exists():
        return False
    try:
        info = {"fit": "stretch"} | json.loads((output / INFO_FILE).read_text(encoding="utf-8"))  # as before the option
        version = info["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{output / INFO_FILE} is of format {version}, this version writes {FORMAT_VERSION}; "
                            "delete the folder to prepare it anew, or choose another --output.")
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


def _make_jobs(
    videos: Sequence[Video], paths: dict[str, pathlib.Path | None], cache_dir: pathlib.Path, settings: FrameSettings
) -> tuple[dict[str, tuple[Any, ...]], dict[str, str]]:
    """The arguments of `decode_to_cache` by video name, and a sentence for each video that lacks a file."""
    names = [video.name for video in videos]
    flows: dict[str, pathlib.Path] = {}
    if settings.rgb_from:
        paths = {**dict.fromkeys(names), **find_arrays(settings.rgb_from, "--rgb-from", names)}
    if settings.flow_from:
        flows = find_arrays(settings.flow_from, "--flow-from", names, with_folders=True)
    jobs: dict[str, tuple[Any, ...]] = {}
    problems = {}
    for video in videos:
        path = paths[video.name]
        if path is None:
            what = f"no {video.name}.npy in {settings.rgb_from} or one folder below" if settings.rgb_from else \
                "no file of that name among the videos"
        elif settings.flow_from and video.name not in flows:
            what = f"no flow {video.name}.npy and no folder {video.name} in {settings.flow_from} or one folder below"
        else:
            jobs[video.name] = (path, cache_dir, settings, flows.get(video.name), video.duration_sec)
            continue
        problems[video.name] = f"video '{video.name}': {what}; add it, or take it out of the annotations."
    return jobs, problems


def _decode_all(
    videos: Sequence[Video], jobs: dict[str, tuple[Any, ...]], problems_of: dict[str, str],
    run: Callable[[dict[str, tuple[Any, ...]]], Iterator[tuple[str, dict[str, Any]]]], notes: list[str],
) -> tuple[list[DecodedVideo], list[str]]:
    """The first pass; answers in the order of `videos`, with a sentence for each that cannot be read."""
    results: dict[str, dict[str, Any]] = {}
    todo = {name: job for name, job in jobs.items() if not is_cached(*job)}
    done = {name: decode_to_cache(*job) for name, job in jobs.items() if name not in todo}
    with tqdm(total=len(jobs), initial=len(done), unit="video", desc="decoding", disable=None) as bar:
        frames = 0
        for name, result in run(todo):
            results[name] = result
            frames += result.get("num_frames", 0)
            bar.update()
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")
    results |= done

    decoded, problems = [], []
    for video in videos:
        result = results.get(video.name) or {"error": problems_of[video.name]}
        if "error" in result:
            problems.append(result["error"])
            continue
        duration_sec = result.pop("duration_sec")
        rows = clip_to_duration(video.annotations, duration_sec, f"video '{video.name}'", notes)
        ambiguous = tuple((start, min(end, duration_sec)) for start, end in video.ambiguous if start < duration_sec)
        usable = dataclasses.replace(video, duration_sec=duration_sec, annotations=rows, ambiguous=ambiguous)
        decoded.append(DecodedVideo(usable, **{**result, "cache": pathlib.Path(result["cache"])}))
    return decoded, problems


def _run(jobs: dict[str, tuple[Any, ...]], processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, result) as they come. Fresh processes, since OpenCV and FFmpeg threads do not survive a fork."""
    if processes <= 1 or len(jobs) <= 1:
        for name, job in jobs.items():
            yield name, decode_to_cache(*job)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=end_with_parent
    ) as pool:
        names = {pool.submit(decode_to_cache, *job): name for name, job in jobs.items()}
        try:
            for future in concurrent.futures.as_completed(names):
                yield names[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError("a decoding process was ended from outside, perhaps for want of memory; run the command "
                            "again with fewer --processes, finished videos are kept.") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_all_records(
    output: pathlib.Path, decoded: Sequence[DecodedVideo], settings: FrameSettings,
    write: Callable[..., list[pathlib.Path]],
) -> list[pathlib.Path]:
    """The second pass: one split per subset. Returns the record files."""
    folder = output / RECORDS_DIR
    shutil.rmtree(folder.parent, ignore_errors=True)  # of a run that stopped before dataset.json
    splits: dict[str, list[Record]] = {name: [] for name in _subsets(decoded)}
    for item in decoded:
        chunks = range(-(-item.num_frames // CHUNK_FRAMES))
        splits[item.video.subset] += [Record(item.video.name, item.cache, chunk) for chunk in chunks]
    return write(folder, splits, settings)


def _measure_files(output: pathlib.Path, records: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Bytes of the record files, and the SHA-256 of each and of the ground truth, by path below `output`."""
    checksums = {}
    for path in [*records, output / GROUND_TRUTH_FILE]:
        with open(path, "rb") as file:
            checksums[path.relative_to(output).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": sum(path.stat().st_size for path in records), "checksums": checksums}


def _remove_litter(output: pathlib.Path, cache_dir: pathlib.Path) -> None:
    """What a killed run left half-written."""
    for path in cache_dir.glob(f"*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (INFO_FILE, GROUND_TRUTH_FILE):
        for path in output.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


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
            "duration_sec": item.video.duration_sec, "source_fps": item.source_fps,
            "source_frames": item.source_frames, "first_record": counts["num_records"],
            "annotations": [{"segment": list(a.segment_sec), "label": a.label} for a in item.video.annotations],
        })
        counts["num_videos"] += 1
        counts["num_records"] += -(-item.num_frames // CHUNK_FRAMES)
    return {"format_version": FORMAT_VERSION, "name": name, **settings.describe(), "chunk_frames": CHUNK_FRAMES,
            "hours": sum(item.video.duration_sec for item in decoded) / 3600, "classes": list(classes),
            "subsets": subsets, "videos": entries, "exceptions": list(exceptions)}


def _subsets(decoded: Sequence[DecodedVideo]) -> list[str]:
    return list(dict.fromkeys(item.video.subset for item in decoded))


def _check_subsets(videos: Sequence[Video]) -> None:
    for video in videos:
        if not re.fullmatch(r"[A-Za-z0-9_]+", video.subset) or video.subset == "all":
            raise UserError(f"video '{video.name}': the subset '{video.subset}' becomes the name of a TFDS split, so "
                            "it must be of letters, digits and underscores, and not 'all'; rename it there.")

