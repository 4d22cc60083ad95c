"""Memory of `sptad detect` against the length of the video: the peak of a whole process, short files and long ones.

    python -m benchmarks.detect [--video FILE] [--minutes 0.5,3,60] [--quick] [--output detect.json]

The long files are the same video over and over, its packets copied. The detector is small, has random weights, two
streams and DIS flow; what it answers for a window is kept until the end of the video.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.timing import report
from sptad_jax import config as config_lib
from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig
from sptad_jax.inference.export import write_safetensors
from sptad_jax.training.step import init_variables

MAX_RATIO = 1.2  # of the peaks of the longest and the shortest file
CLASSES = [f"class {i}" for i in range(8)]
CONFIG = Config(
    model=ModelConfig(width_multiplier=0.125, hidden_dim=32, num_proposals=16, ffn_dim=64, num_stages=2, dynamic_dim=8,
                      soi_bins=8, num_heads=4),
    data=DataConfig(num_frames=128, crop_size=32, stride_test=64, max_targets=8),
    inference=InferenceConfig(batch_size=4, vote=True),
)  # fmt: skip
SOURCE = {"fps": 10.0, "frame_size": 36, "max_frames": 0, "flow": {"method": "dis", "bound": 4.0, "size": 64}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", default="", help="to be repeated; default: half a minute that is made on the spot")
    parser.add_argument("--minutes", default="0.5,3,60", help="lengths, the shortest first (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="half a minute against two")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    lengths = [0.5, 2.0] if args.quick else [float(part) for part in args.minutes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        source = pathlib.Path(args.video) if args.video else write_source(root / "source.mp4")
        checkpoint = root / "detector.safetensors"
        meta = {"config": config_lib.to_dict(CONFIG), "classes": CLASSES, "source": SOURCE, "step": 0}
        write_safetensors(checkpoint, init_variables(CONFIG, len(CLASSES)), meta)
        rows = [measure(source, root / f"{minutes:g}.mp4", minutes, checkpoint) for minutes in lengths]
    ratio = rows[-1]["peak MiB"] / rows[0]["peak MiB"]
    report("Peak memory of sptad detect, two streams, DIS flow", rows, args.output, ratio=ratio, goal=MAX_RATIO)
    return 0 if ratio <= MAX_RATIO else 1


def measure(source: pathlib.Path, path: pathlib.Path, minutes: float, checkpoint: pathlib.Path) -> dict[str, Any]:
    """Detects in `minutes` of the source, in a process of its own."""
    repeat_video(source, path, 60 * minutes)
    output = path.with_suffix(".csv")
    command = [sys.executable, "-m", "sptad_jax.cli", "detect", str(path), "--checkpoint", str(checkpoint),
               "--output", str(output), "--threshold", "0.000001", "--top-k", "100000"]  # fmt: skip
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"sptad detect ended with {child.returncode}")
    return {"minutes": minutes, "peak MiB": usage.ru_maxrss / 1024, "seconds": time.perf_counter() - start,
            "detections": len(output.read_text().splitlines()) - 1}  # fmt: skip


def write_source(path: pathlib.Path) -> pathlib.Path:
    """Half a minute, 160 x 120 at 15 frames a second: a bright square that wanders over noise."""
    from sptad_jax.data.video import write_video

    background = np.random.default_rng(0).integers(0, 90, (120, 160, 3), np.uint8)

    def picture(t: int) -> np.ndarray:
        image = background.copy()
        x, y = 2 * t % 120, 30 + round(25 * np.sin(t / 9))
        image[y:y + 40, x:x + 40] = 200
        return image

    write_video(path, map(picture, range(450)), 15)
    return path


def repeat_video(source: pathlib.Path, target: pathlib.Path, seconds: float) -> None:
    """The first video stream of `source` until `seconds` are full, without decoding."""
    import av

    with av.open(str(target), "w") as out:
        shift, stream, full = 0, None, False
        while not full:
            with av.open(str(source)) as container:
                template = container.streams.video[0]
                assert template.time_base is not None and template.duration is not None
                stream = stream or out.add_stream_from_template(template)
                for packet in container.demux(template):
                    if packet.dts is not None and packet.pts is not None:  # else the mark of the end
                        packet.dts, packet.pts, packet.stream = packet.dts + shift, packet.pts + shift, stream
                        out.mux(packet)
                shift += template.duration
                full = shift * template.time_base >= seconds


if __name__ == "__main__":
    sys.exit(main())
