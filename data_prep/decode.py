"""One video to frames and flow in a cache folder. What decodes is imported where it is used; options need none."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from typing import Any, Literal

import numpy as np

from sptad_jax.config import CHANNELS
from sptad_jax.errors import UserError
from sptad_jax.files import write_json

MARKER = "video.json"
UNFINISHED = ".unfinished"  # ending of a folder that is being written


@dataclasses.dataclass(frozen=True)
class FrameSettings:
    """How frames are made out of a video."""

    fps: float = 10.0  # stored frames per second (paper 4.1)
    max_frames: int = 0  # frames at most, at a lower rate where needed; 0: no limit. 768 for ActivityNet
    frame_size: int = 112  # pixels of either side
    # the whole picture out of shape, its central square, or the square in which something moves
    fit: Literal["stretch", "crop", "motion"] = "stretch"
    flow: Literal["tvl1", "tvl1_jax", "dis", "none"] = "tvl1"
    bound: float = 20.0  # pixels of flow that map to the ends of a byte
    flow_size: int = 0  # pixels of either side on which flow is computed, before it is averaged down; 0: frame_size
    rgb_from: str = ""  # folder of arrays that are taken in place of videos
    flow_from: str = ""  # folder of flow that is taken in place of computing it, made as `flow` and `bound` say

    @property
    def streams(self) -> tuple[str, ...]:
        return ("rgb",) if self.flow == "none" else ("rgb", "flow")

    def describe(self) -> dict[str, Any]:
        """As dataset.json holds it; where the arrays of other tools lay does not matter, only that they were taken."""
        flow = None if self.flow == "none" else {
            "method": self.flow, "bound": float(self.bound), "size": self.flow_size or self.frame_size}
        taken = [name for name, folder in (("rgb", self.rgb_from), ("flow", self.flow_from)) if folder]
        return {"fps": float(self.fps), "max_frames": self.max_frames, "frame_size": self.frame_size,
                "fit": self.fit, "streams": list(self.streams), "flow": flow, "from_arrays": taken}


def is_cached(
    path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings, flow_path: pathlib.Path | None = None,
    stated_sec: float = 0.0,
) -> bool:
    """Whether `decode_to_cache` has been here with these very files and settings."""
    return _read_marker(_place(path, cache_dir, settings, flow_path, stated_sec), settings) is not None


def decode_to_cache(
    path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings, flow_path: pathlib.Path | None = None,
    stated_sec: float = 0.0,
) -> dict[str, Any]:
    """Decodes a video and computes its flow, once; needs the memory of some dozen frames, however long it is.

    Args:
      path: the video, or the array of frames where settings.rgb_from says so.
      cache_dir: folder for the results; each is written under another name and renamed when it is whole.
      settings: rate, size and flow.
      flow_path: array or folder of pictures to take the flow from.
      stated_sec: the duration in the annotations, from which the rate of an array may follow; 0 where unknown.

    Returns {"num_frames", "fps", "duration_sec", "source_fps", "source_frames", "cache"}, or {"error": sentence} for a
    file that cannot be read.
    """
    import cv2

    place = _place(path, cache_dir, settings, flow_path, stated_sec)
    facts = _read_marker(place, settings)
    if facts is None:
        shutil.rmtree(place, ignore_errors=True)  # its files are not of the length that they were written with
        unfinished = place.with_name(f"{place.name}.{uuid.uuid4().hex}{UNFINISHED}")
        unfinished.mkdir(parents=True)
        try:
            facts = _write_streams(unfinished, path, settings, flow_path, stated_sec)
            write_json(unfinished / MARKER, facts)
            _rename(unfinished, place, settings)
        except UserError as error:
            return {"error": str(error)}
        except (cv2.error, MemoryError) as error:
            return {"error": f"{path}: cannot be brought to frames ({' '.join(str(error).split()) or 'no memory'}); "
                             "repair it or leave it out."}
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return {**facts, "cache": os.fspath(place)}


def load_cached(place: pathlib.Path, settings: FrameSettings) -> dict[str, np.ndarray]:
    """Memory-mapped streams: uint8 [T, H, W, C] each."""
    num_frames = json.loads((place / MARKER).read_text(encoding="utf-8"))["num_frames"]
    return {name: np.memmap(place / name, np.uint8, "r", shape=_shape(name, num_frames, settings))
            for name in settings.streams}


def _write_streams(
    folder: pathlib.Path, path: pathlib.Path, settings: FrameSettings, flow_path: pathlib.Path | None, stated_sec: float
) -> dict[str, Any]:
    """A file of bytes for each stream, as its frames come; returns the facts for the marker."""
    from data_prep.arrays import ArrayReader, FlowReader
    from sptad_jax.data.streams import decoded_size, iterate_streams, open_video
    from sptad_jax.data.video import FrameReader

    source = settings.describe() | ({"flow": None} if flow_path else {})  # then it is taken, not computed
    size = decoded_size(source)
    reader: ArrayReader | FrameReader
    if settings.rgb_from:
        reader = ArrayReader(path, settings.fps, size, settings.max_frames, stated_sec)
    else:
        reader = open_video(path, source)
    flow = FlowReader(flow_path, size) if flow_path else None
    num_frames = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in settings.streams}
        for block in iterate_streams(reader, source):
            count = len(block["rgb"])
            if flow:
                block["flow"] = flow.read(num_frames, num_frames + count)
            for name, frames in block.items():
                files[name].write(frames.tobytes())
            num_frames += count
    if flow:
        flow.check_length(num_frames)
    return {"num_frames": num_frames, "fps": float(reader.fps), "duration_sec": reader.duration_sec,
            "source_fps": reader.source_frames / reader.duration_sec, "source_frames": reader.source_frames}


def _rename(unfinished: pathlib.Path, place: pathlib.Path, settings: FrameSettings) -> None:
    try:
        os.replace(unfinished, place)
    except OSError:  # another worker was quicker, as Beam gives a slow video to two; a folder replaces no full one
        if _read_marker(place, settings) is None:
            raise


def _read_marker(place: pathlib.Path, settings: FrameSettings) -> dict[str, Any] | None:
    """The facts of a cached video, or None where it is not there or not whole (after a power failure, say)."""
    try:
        facts: dict[str, Any] = json.loads((place / MARKER).read_text(encoding="utf-8"))
        whole = all((place / name).stat().st_size == np.prod(_shape(name, facts["num_frames"], settings))
                    for name in settings.streams)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def _shape(stream: str, num_frames: int, settings: FrameSettings) -> tuple[int, int, int, int]:
    return num_frames, settings.frame_size, settings.frame_size, CHANNELS[stream]


def _place(
    path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings, flow_path: pathlib.Path | None,
    stated_sec: float,
) -> pathlib.Path:
    """A folder of its own for each set of files, state of the files and settings."""
    sources = [path] if flow_path is None else [path, flow_path, flow_path / "x", flow_path / "y"]
    states = [[os.path.abspath(source), *_state(source)] for source in sources]
    made = settings.describe()
    if settings.fit == "stretch":
        del made["fit"]  # so that what was decoded before there was a choice is found again
    key = json.dumps([states, made, stated_sec if settings.rgb_from else 0])
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:24]


def _state(path: pathlib.Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:  # told when it is read
        return ()
    return stat.st_size, stat.st_mtime_ns
