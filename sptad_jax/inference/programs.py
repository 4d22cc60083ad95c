"""A trained detector as one program: arrays in, scored segments out; parameters and scaling of bytes are inside.

StableHLO by `jax.export`, or ONNX. What runs it needs neither this package nor Flax; docs/serve.py is a server.
"""

import dataclasses
import functools
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from sptad_jax import config as config_lib
from sptad_jax.config import CHANNELS, Config
from sptad_jax.data import augment
from sptad_jax.errors import UserError
from sptad_jax.inference.export import META_FIELDS, write_output
from sptad_jax.models.sptad import SPTAD, final_predictions

PLATFORMS = ("cpu", "cuda", "tpu")  # that one StableHLO program runs on
OUTPUTS = ("scores", "segments_se")

Arrays = dict[str, Any]


def write_stablehlo(path: str | pathlib.Path, variables: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a .zip of `detector.stablehlo`, which `jax.export.deserialize` reads, and `meta.json`; whole or not.

    The program maps {"rgb" and/or "flow", "num_frames"} of any batch size to {"scores", "segments_se"}; see
    `make_program`. meta.json holds "inputs" (name -> shape and dtype), "outputs", and the fields of `meta`.

    Args: as of `write_safetensors`. Raises UserError where `path` ends otherwise or cannot be written.
    """
    _check_suffix(path, ".zip", "a StableHLO program is")
    config, num_classes = config_lib.from_dict(meta["config"]), len(meta["classes"])
    program = jax.jit(make_program(variables, config, num_classes))
    (size,) = export.symbolic_shape("batch")
    exported = export.export(program, platforms=PLATFORMS)(input_shapes(config, size))
    inputs = {name: {"shape": [dim if isinstance(dim, int) else "batch" for dim in spec.shape],
                     "dtype": spec.dtype.name} for name, spec in input_shapes(config, size).items()}  # fmt: skip
    described = {"inputs": inputs, "outputs": OUTPUTS} | {name: meta[name] for name in META_FIELDS}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("detector.stablehlo", exported.serialize())
        file.writestr("meta.json", json.dumps(described, indent=1, ensure_ascii=False))
    write_output(path, buffer.getvalue())


def write_onnx(path: str | pathlib.Path, variables: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a .onnx file with the inputs and outputs of `write_stablehlo`'s program, whole or not at all.

    Computes in float32 whatever the config. The fields of `meta` are JSON in the model's metadata, each under its name.

    Args: as of `write_safetensors`. Raises UserError where `path` ends otherwise or cannot be written, or where the
    extra [onnx] is not installed.
    """
    _check_suffix(path, ".onnx", "an ONNX model is")
    try:
        import jax2onnx
        import onnx
    except ModuleNotFoundError as error:
        raise UserError(f"--format onnx needs the package '{error.name}'; install the extra [onnx].") from None

    config, num_classes = config_lib.from_dict(meta["config"]), len(meta["classes"])
    # decomposed: the converter knows no 3-D convolution
    model_config = dataclasses.replace(config.model, conv_mode="decomposed", compute_dtype="float32")
    program = make_program(variables, dataclasses.replace(config, model=model_config), num_classes)
    (size,) = export.symbolic_shape("batch")
    shapes = input_shapes(config, size)

    def positional(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        outputs = program(dict(zip(shapes, arrays)))
        return tuple(outputs[name] for name in OUTPUTS)

    with jax.disable_jit():  # before the converter puts functions of its own in place of JAX's
        traced = jax.make_jaxpr(positional)(*shapes.values())
    model = jax2onnx.to_onnx(
        functools.partial(_evaluate, traced.jaxpr, traced.consts), list(shapes.values()), model_name="sptad",
        input_names=list(shapes), output_names=OUTPUTS,
    )  # fmt: skip
    onnx.helper.set_model_props(model, {name: json.dumps(meta[name], ensure_ascii=False) for name in META_FIELDS})
    write_output(path, model.SerializeToString())


def input_shapes(config: Config, batch_size: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What a program takes: uint8 [B, F, crop, crop, 3] "rgb" and 2 "flow", as the config has them; int32 [B]."""
    shape = (batch_size, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    streams = {name: jax.ShapeDtypeStruct((*shape, CHANNELS[name]), np.uint8) for name in config.model.streams}
    return streams | {"num_frames": jax.ShapeDtypeStruct((batch_size,), np.int32)}


def make_program(variables: Mapping[str, Any], config: Config, num_classes: int) -> Callable[[Arrays], Arrays]:
    """The detector as a function of `input_shapes`; "num_frames" counts the real frames of each window.

    Returns {"scores" float32 [B, N, A], the last stage's class probabilities adjusted by those of the clip as
    `config.inference.combine` says; "segments_se" float32 [B, N, 2], (start, end) as share of the window, not clipped}.
    With conv_mode "auto" each platform gets the convolutions that it is fast at.
    """

    def run(conv_mode: str, variables: Mapping[str, Any], batch: Arrays) -> Arrays:
        model_config = dataclasses.replace(config.model, conv_mode=conv_mode, remat=False)  # type: ignore[arg-type]
        inputs = augment.prepare(batch, config.data, None, train=False)
        frame_mask = jnp.arange(config.data.num_frames) < batch["num_frames"][:, None]
        predictions, _ = SPTAD(model_config, num_classes).apply(variables, inputs, frame_mask, train=False)
        class_logits, segments_se = final_predictions(predictions, model_config)
        scores = jax.nn.sigmoid(class_logits)
        combine = config.inference.combine
        if combine != "none" and "clip_logits" in predictions:  # postprocess.adjust_scores
            scores = scores * jax.nn.sigmoid(predictions["clip_logits"])[:, None]
            scores = jnp.sqrt(scores) if combine == "sqrt" else scores
        return {"scores": scores, "segments_se": segments_se}

    if config.model.conv_mode != "auto":
        return functools.partial(run, config.model.conv_mode, variables)
    direct, decomposed = functools.partial(run, "direct"), functools.partial(run, "decomposed")
    return lambda batch: jax.lax.platform_dependent(variables, batch, cpu=decomposed, default=direct)


def _evaluate(jaxpr: core.Jaxpr, constants: Sequence[Any], *arrays: Any) -> tuple[Any, ...]:
    """The outputs of a traced program, by operations that jax2onnx 0.17 converts with a symbolic batch.

    It reads no nested jit of JAX 0.12, writes broken graphs for `stop_gradient`, and wants the sizes that `lax.pad`
    pads to; its own `jnp.pad` does not.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants)) | dict(zip(jaxpr.invars, arrays))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, params = [read(variable) for variable in equation.invars], equation.params
        inner = params.get("call_jaxpr") or params.get("jaxpr")  # of a custom derivative, or jit
        outputs: Any
        if inner is not None:
            outputs = _evaluate(inner.jaxpr, inner.consts, *inputs)
        elif equation.primitive.name == "stop_gradient":
            outputs = inputs
        elif equation.primitive.name == "pad":
            widths = [(before, after) for before, after, _ in params["padding_config"]]
            outputs = [jnp.pad(inputs[0], widths, constant_values=np.asarray(inputs[1]).item())]
        else:
            found = equation.primitive.bind(*inputs, **params)
            outputs = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, outputs))
    return tuple(read(variable) for variable in jaxpr.outvars)


def _check_suffix(path: str | pathlib.Path, suffix: str, what: str) -> None:
    if pathlib.Path(path).suffix != suffix:
        raise UserError(f"--output {path}: {what} written as {suffix}; give a file name that ends so.")
