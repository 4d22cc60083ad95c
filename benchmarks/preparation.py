"""Data preparation against the libraries it rests on: decoding against PyAV alone, flow against OpenCV alone.

    python -m benchmarks.preparation --video clip.mp4 [--quick] [--output preparation.json]

Decoding: `FrameReader` at 10 fps and 112 x 112 against a loop that only decodes the same file with PyAV.
Flow: `data_prep.custom` with N processes on N copies of the video against OpenCV's TV-L1 on the same frames in one
process, times N. Start-up of the processes counts; the more frames, the less it weighs.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import tempfile
import time
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.timing import median_ratio, report, time_in_turns
from data_prep.custom import prepare
from data_prep.decode import FrameSettings
from sptad_jax.data.video import FrameReader

FPS, SIZE = 10.0, 112  # paper 4.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", required=True, help="any video file; some ten seconds are enough")
    parser.add_argument("--flow", choices=["tvl1", "dis"], default="tvl1")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, flow by DIS")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    repeats, method = (1, "dis") if args.quick else (args.repeats, args.flow)
    cv2.setNumThreads(1)

    decoding = time_in_turns({
        "PyAV alone": lambda: decode_only(args.video),
        "FrameReader": lambda: sum(1 for _ in FrameReader(args.video, FPS, SIZE)),
    }, repeats)
    frames = np.stack(list(FrameReader(args.video, FPS, SIZE)))
    with tempfile.TemporaryDirectory() as folder:
        annotations = copy_video(pathlib.Path(args.video), pathlib.Path(folder) / "videos", args.processes)
        flow = time_in_turns({
            "OpenCV alone, one process": lambda: flow_only(frames, method),
            "data_prep": lambda: run_preparation(pathlib.Path(folder), annotations, method, args.processes),
        }, repeats)
    speed_ratio = median_ratio(flow["OpenCV alone, one process"], flow["data_prep"])
    report("Data preparation", [
        {"what": f"{part}, {name}", "median seconds": float(np.median(seconds))}
        for part, sides in (("decoding", decoding), (f"flow {method}", flow)) for name, seconds in sides.items()
    ], args.output, frames=len(frames), processes=args.processes,
        decoding_speed_to_pyav=median_ratio(decoding["PyAV alone"], decoding["FrameReader"]),
        # N videos in the time that OpenCV takes for one would be a ratio of 1
        flow_speed_to_opencv_times_processes=speed_ratio)


def decode_only(path: str) -> int:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def flow_only(frames: np.ndarray, method: str) -> None:
    library: Any = cv2
    solver = library.optflow.DualTVL1OpticalFlow_create() if method == "tvl1" else \
        library.DISOpticalFlow_create(library.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    for before, after in itertools.pairwise(grey):
        solver.calc(before, after, None)


def copy_video(video: pathlib.Path, folder: pathlib.Path, count: int) -> pathlib.Path:
    """`count` copies, with annotations for them."""
    folder.mkdir()
    names = [f"copy_{i}" for i in range(count)]
    for name in names:
        shutil.copy(video, folder / f"{name}{video.suffix}")
    annotations = folder.parent / "annotations.json"
    rows = [{"segment": [0.0, 0.5], "label": "any"}]
    annotations.write_text(json.dumps({"database": {name: {"subset": "all_of_it", "annotations": rows}
                                                    for name in names}}))
    return annotations


def run_preparation(folder: pathlib.Path, annotations: pathlib.Path, method: str, processes: int) -> None:
    output = folder / f"dataset_{time.monotonic_ns()}"
    prepare(folder / "videos", annotations, output, FrameSettings(flow=method), processes=processes)  # type: ignore[arg-type]
    shutil.rmtree(output)


if __name__ == "__main__":
    main()
