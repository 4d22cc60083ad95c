"""The slow way that streaming has to equal: the whole video in memory, its windows cut from arrays."""

import jax
import numpy as np

from sptad_jax.data.streams import read_streams
from sptad_jax.data.windows import make_window_starts
from sptad_jax.inference.postprocess import windows_to_detections


def cut(stream: np.ndarray, start: int, length: int) -> np.ndarray:
    out = np.zeros((length, *stream.shape[1:]), stream.dtype)
    for t in range(length):
        if start + t < len(stream):
            out[t] = stream[start + t]
    return out


def detect_whole(detector, path):
    """As `detect_video`, which see."""
    config = detector.config
    length, size = config.data.num_frames, config.inference.batch_size
    frames, fps, duration_sec = read_streams(path, detector.source, with_flow="flow" in config.model.streams)
    starts = make_window_starts(len(frames["rgb"]), length, config.data.stride_test)
    outputs = []
    for first in range(0, len(starts), size):
        chosen = np.resize(starts[first:first + size], size)
        batch = {name: np.stack([cut(frames[name], start, length) for start in chosen])
                 for name in config.model.streams}
        batch["num_frames"] = np.minimum(len(frames["rgb"]) - chosen, length).astype(np.int32)
        real = len(starts[first:first + size])
        outputs.append({name: value[:real] for name, value in
                        jax.device_get(detector.forward(detector.variables, batch)).items()})
    windows = {name: np.concatenate([out[name] for out in outputs]) for name in outputs[0]}
    return windows_to_detections(windows | {"start_frame": starts}, duration_sec=duration_sec, fps=fps, config=config,
                                 classes=detector.classes), duration_sec
