"""One video file to frames and flow in a cache folder; runs in worker processes, so it imports little."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Literal

import numpy as np

from sptad_jax.errors import UserError
from sptad_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class FrameSettings:
    """How frames are made out of a video."""

    fps: float = 10.0  # stored frames per second (paper 4.1)
    max_frames: int = 0  # frames at most, at a lower rate where needed; 0: no limit. 768 for ActivityNet
    frame_size: int = 112  # pixels of either side
    flow: Literal["tvl1", "dis", "none"] = "tvl1"
    bound: float = 20.0  # pixels of flow that map to the ends of a byte
    flow_size: int = 0  # pixels of either side on which flow is computed, before it is averaged down; 0: frame_size

    @property
    def streams(self) -> tuple[str, ...]:
        return ("rgb",) if self.flow == "none" else ("rgb", "flow")

    def describe(self) -> dict[str, Any]:
        """As dataset.json holds it."""
        flow = None if self.flow == "none" else {
            "method": self.flow, "bound": self.bound, "size": self.flow_size or self.frame_size}
        return {"fps": self.fps, "max_frames": self.max_frames, "frame_size": self.frame_size,
                "streams": list(self.streams), "flow": flow}


def is_cached(path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings) -> bool:
    """Whether `decode_to_cache` has been here with this very file and these settings."""
    return (_place(path, cache_dir, settings) / "video.json").is_file()


def decode_to_cache(path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings) -> dict[str, Any]:
    """Decodes a video and computes its flow, once.

    Returns {"num_frames", "fps", "duration_sec", "cache"}, or {"error": sentence} for a file that cannot be read.
    """
    from sptad_jax.data.streams import read_streams

    place = _place(path, cache_dir, settings)
    marker = place / "video.json"  # written last
    if marker.is_file():
        return {**json.loads(marker.read_text(encoding="utf-8")), "cache": os.fspath(place)}
    try:
        streams, fps, duration_sec = read_streams(path, settings.describe())
    except UserError as error:
        return {"error": str(error)}
    place.mkdir(parents=True, exist_ok=True)
    for name, frames in streams.items():
        np.save(place / f"{name}.npy", frames, allow_pickle=False)
    facts = {"num_frames": len(streams["rgb"]), "fps": fps, "duration_sec": duration_sec}
    write_json(marker, facts)
    return {**facts, "cache": os.fspath(place)}


def load_cached(place: pathlib.Path, settings: FrameSettings) -> dict[str, np.ndarray]:
    """Memory-mapped streams: uint8 [T, H, W, C] each."""
    return {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in settings.streams}


def _place(path: pathlib.Path, cache_dir: pathlib.Path, settings: FrameSettings) -> pathlib.Path:
    """A folder of its own for each file, state of the file and settings."""
    stat = path.stat()
    key = json.dumps([os.path.abspath(path), stat.st_size, stat.st_mtime_ns, settings.describe()])
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:24]
