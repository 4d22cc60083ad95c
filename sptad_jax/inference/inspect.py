"""What a detector consists of, counted in its program, and where its proposals look, followed through a video."""

import dataclasses
import functools
import math
import os
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sptad_jax.config import CHANNELS, Config, ModelConfig
from sptad_jax.data import augment
from sptad_jax.errors import UserError
from sptad_jax.inference.command import printable
from sptad_jax.inference.detect import Detector, read_batches
from sptad_jax.inference.postprocess import adjust_scores
from sptad_jax.models.conv3d import fit_to_device
from sptad_jax.models.detection_head import to_valid_segments
from sptad_jax.models.i3d import END_POINTS, Mixed, Unit3D
from sptad_jax.models.pretrained import flatten
from sptad_jax.models.soi_align import choose_level
from sptad_jax.models.sptad import SPTAD, final_predictions

Path = tuple[str, ...]
# of a stage: named scope -> what it leaves in the intermediates, in order of computing
STAGE_OUTPUTS = {
    "soi_align": ("soi_features",), "self_attention": ("attended",), "sparse_interaction": ("interacted",),
    "feed_forward": ("segment_features",), "branches": ("class_logits", "segments_se"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the detector; a path that others begin with is their sum, and () is the whole.

    shapes: of what it gives for one window, without the batch axis. parameters: how many values it learns. flops:
    2 for each multiply-add of convolutions and matrix products in the forward pass of one window, taps that fall on
    padding included, as usual; what is done element by element is not counted.
    """

    path: Path
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Proposals of all W windows of a video through S stages; with fusion="late", N counts those of all streams.

    segments_norm: float32 [W, S + 1, N, 2] as share of the window, the initial ones first. level: int32 [W, S, N] that
    each stage read from. score: [W, N] of the best class, as adjusted for inference before windows vote; label: int
    [W, N], that class. start_sec: [W] of the windows; window_sec: length of one, duration_sec of the video, seconds.
    """

    segments_norm: np.ndarray
    level: np.ndarray
    score: np.ndarray
    label: np.ndarray
    start_sec: np.ndarray
    window_sec: float
    duration_sec: float


def list_facts(detector: Detector, checkpoint: str | pathlib.Path) -> dict[str, str]:
    """Name -> value of what a checkpoint says of itself, for people to read."""
    model, data, source = detector.config.model, detector.config.data, detector.source
    flow, most = source["flow"], source["max_frames"]
    fit = {"crop": "central square", "motion": "square of motion"}.get(source.get("fit", ""), "whole picture")
    rate = f"{source['fps']:g} a second" + (f", at most {most} of a video" if most else "")
    usual = dataclasses.asdict(ModelConfig())
    changed = [f"model.{name}={value}" for name, value in dataclasses.asdict(model).items() if value != usual[name]]
    facts = {
        "checkpoint": f"{checkpoint}, step {detector.step}",
        "config": f"stored in the checkpoint; unlike the defaults: {', '.join(changed) or 'nothing in the model'}",
        "classes": f"{len(detector.classes)}: {', '.join(detector.classes)}",
        "streams": " and ".join(model.streams) + (f", {model.fusion} fusion" if len(model.streams) > 1 else ""),
        "frames": f"{rate}, {fit} at {source['frame_size']} pixels a side, cropped to {data.crop_size}",
        "flow": f"{flow['method']}, bound {flow['bound']:g}, on {flow['size']} pixels" if flow else "none",
        "window": f"{data.num_frames} frames, one every {data.stride_test}",
        "proposals": f"{model.num_proposals}, refined by {model.num_stages} stages",
    }
    return {name: printable(value) for name, value in facts.items()}


def describe(config: Config, num_classes: int) -> list[Part]:
    """All parts in order of computing, sums before their parts, the whole last. Nothing is computed."""
    jaxpr, seen, variables = _trace(config, num_classes)
    flops: dict[Path, int] = defaultdict(int)
    scopes: dict[Path, str] = {}  # a module of a stage -> the named scope that calls it
    for path, eqn in _equations(jaxpr):
        flops[_with_stem(path)] += _flops(eqn)
        stage = _stage_of(path)
        if len(path) > len(stage) + 1:
            scopes[(*stage, path[len(stage) + 1])] = path[len(stage)]
    parameters: dict[Path, int] = defaultdict(int)
    for name, leaf in flatten(variables["params"]).items():
        *parents, _ = name.split("/")
        path, stage = _with_stem(tuple(parents)), _stage_of(tuple(parents))
        if stage:
            path = (*stage, scopes[path[: len(stage) + 1]], *path[len(stage) :])
        parameters[path if path[-1] != "detection_head" else (*path, "proposals")] += math.prod(leaf.shape)

    def part(path: Path, shapes: Sequence[tuple[int, ...]]) -> Part:
        sums = (sum(n for key, n in table.items() if key[: len(path)] == path) for table in (parameters, flops))
        return Part(path, tuple(shape[1:] for shape in shapes), *sums)

    return [part(path, [seen[name].shape for name in names]) for path, names in _outline(config.model, seen)]


def format_parts(parts: Sequence[Part]) -> str:
    """The table for a terminal, one line a part."""
    total = parts[-1]
    rows = [(f"{'  ' * (len(part.path) - 1)}{part.path[-1] if part.path else 'total'}", shape_text(part),
             f"{part.parameters:,}", mflop_text(part), f"{100 * part.flops / total.flops:.1f}") for part in parts]
    rows.insert(0, ("part", "output of one window", "parameters", "MFLOP", "%"))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = ["  ".join(f"{cell:<{w}}" if k < 2 else f"{cell:>{w}}" for k, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:-1], "-" * len(lines[0]), lines[-1]])


def shape_text(part: Part) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in part.shapes)


def mflop_text(part: Part) -> str:
    """Millions of operations."""
    return f"{part.flops / 1e6:,.2f}"


def initial_proposals(detector: Detector, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The learnt segments that the first stage starts from, float32 [N, 2] as share of the window, and levels int [N].

    With fusion="late" those of the first stream come first.
    """
    model, params = detector.config.model, detector.variables["params"]
    heads = [params[stream] for stream in model.streams] if model.fusion == "late" else [params]
    learnt = np.concatenate([np.asarray(head["detection_head"]["proposal_segments"]) for head in heads])
    segments_se = to_valid_segments(jnp.asarray(learnt))
    return np.asarray(segments_se), np.asarray(choose_level(segments_se, num_levels, model.level_rule, model.eta))


def level_steps(parts: Sequence[Part]) -> list[int]:
    """T_l, time steps of the pyramid's levels, finest first."""
    return [shape[0] for shape in next(part.shapes for part in parts if part.path[-1:] == ("temporal_fpn",))]


def follow(
    detector: Detector, video: str | os.PathLike[str], on_progress: Callable[[float], None] | None = None
) -> Tracks:
    """Runs a video file, read as `detect_video` reads it, and keeps what every stage answers.

    `on_progress` is called with the seconds of video that are done. Raises UserError for a file that cannot be decoded.
    """
    config = detector.config
    reader, batches = read_batches(detector, video)
    probe, rows = _make_probe(detector), defaultdict(list)
    for batch in batches:
        inputs = {name: batch[name] for name in (*config.model.streams, "num_frames")}
        out = jax.device_get(probe(detector.variables, inputs)) | {"start_frame": batch["start_frame"]}
        for name, value in out.items():
            rows[name].append(value[batch["is_real"]])
        if on_progress:
            on_progress(float(batch["start_frame"].max() + config.data.num_frames) / reader.fps)
    found = {name: np.concatenate(values) for name, values in rows.items()}
    score = adjust_scores(found["class_prob"], found.get("clip_prob"), config.inference.combine)
    if not (np.isfinite(score).all() and np.isfinite(found["segments_norm"]).all()):
        raise UserError("the model's output is not finite: its weights have diverged or are damaged; take others.")
    return Tracks(found["segments_norm"], found["level"], score.max(-1), score.argmax(-1),
                  found["start_frame"] / reader.fps, config.data.num_frames / reader.fps, reader.duration_sec)


def _make_probe(detector: Detector) -> Callable[[Any, dict[str, np.ndarray]], dict[str, jax.Array]]:
    """As `make_forward`, but "segments_norm" [B, S + 1, N, 2] has those of all stages, and "level" is [B, S, N]."""
    config = detector.config
    model_config, compiler_options = fit_to_device(config.model)
    model = SPTAD(model_config, len(detector.classes))
    prefixes = [f"{stream}/" for stream in config.model.streams] if config.model.fusion == "late" else [""]

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def probe(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs = augment.prepare(batch, config.data, None, train=False)
        frame_mask = jnp.arange(config.data.num_frames) < batch["num_frames"][:, None]
        predictions, seen = model.apply(variables, inputs, frame_mask, train=False)

        def collect(names: Sequence[str]) -> jax.Array:  # of all streams, [B, len(names), N, ...]
            return jnp.stack([jnp.concatenate([seen[prefix + name] for prefix in prefixes], 1) for name in names], 1)

        stages = [f"stage_{index}" for index in range(config.model.num_stages)]
        out = {"class_prob": jax.nn.sigmoid(final_predictions(predictions, config.model)[0]),
               "segments_norm": collect(["proposal_segments_se", *(f"{stage}/segments_se" for stage in stages)]),
               "level": collect([f"{stage}/level" for stage in stages])}
        if "clip_logits" in predictions:
            out["clip_prob"] = jax.nn.sigmoid(predictions["clip_logits"])
        return out

    return probe


def _trace(config: Config, num_classes: int) -> tuple[core.Jaxpr, dict[str, Any], dict[str, Any]]:
    """The program of one window's forward pass; shapes of all intermediates by name; shapes of the variables."""
    # the direct convolution is one operation of the program, as it is one of the network
    model = SPTAD(dataclasses.replace(config.model, conv_mode="direct", remat=False), num_classes)
    size = (1, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    inputs = {name: jax.ShapeDtypeStruct((*size, CHANNELS[name]), jnp.float32) for name in config.model.streams}
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, None, train=False), inputs)

    def forward(variables: Any, inputs: Any) -> Any:
        (_, seen), captured = model.apply(
            variables, inputs, None, train=False, mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, (Mixed, Unit3D)),
        )  # fmt: skip
        return seen | flatten(captured["intermediates"])  # a captured value is a tuple of one

    with nn.override_named_call(True):  # FLAX_PROFILE=0 would leave modules unnamed
        closed, shapes = jax.make_jaxpr(forward, return_shape=True)(variables, inputs)
    seen = {name: value[0] if isinstance(value, tuple) else value for name, value in shapes.items()}
    return closed.jaxpr, seen, variables


def _equations(jaxpr: Any, outer: str = "") -> Iterator[tuple[Path, Any]]:
    """All operations with the path of modules and named scopes that they lie in, without the detector's own name.

    The detector has no loops, whose bodies would count as often as they run.
    """
    for eqn in jaxpr.eqns:
        stack = f"{outer}/{eqn.source_info.name_stack}"
        inner = [value for value in eqn.params.values() if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))]
        for each in inner:
            yield from _equations(each, stack)
        if not inner:  # "stage_0._attend" is a method; a scope round a module has the module's name
            names = [name.partition(".")[0] for name in stack.split("/")]
            yield tuple(dict.fromkeys(name for name in names if name and name != SPTAD.__name__)), eqn


def _flops(eqn: Any) -> int:
    if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    left, right = (value.aval.shape for value in eqn.invars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        taps = math.prod(left[axis] for axis in contracted)
    else:
        taps = math.prod(right) // right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * taps * math.prod(eqn.outvars[0].aval.shape)


def _with_stem(path: Path) -> Path:
    """Puts the convolutions before the first Inception block under one name."""
    in_stem = path[:1] and path[0].startswith("backbone_") and path[1:] and path[1].startswith("Conv3d_")
    return (path[0], "stem", *path[1:]) if in_stem else path


def _stage_of(path: Path) -> Path:
    """The path up to the stage of the detection head that it lies in; () outside of any."""
    depth = next((depth for depth, name in enumerate(path, start=1) if name.startswith("stage_")), 0)
    return path[:depth]


def _outline(model: ModelConfig, seen: dict[str, Any]) -> Iterator[tuple[Path, list[str]]]:
    """Paths of the parts in their order, each with the names of the intermediates that it gives."""
    for stream in model.streams:
        top = f"backbone_{stream}"
        blocks = [name for name in END_POINTS if f"{top}/{name}/__call__" in seen]
        stem = [name for name in blocks if name.startswith("Conv3d_")]
        yield (top,), [f"{stream}/{name}" for name in model.end_points]
        yield (top, "stem"), [f"{top}/{stem[-1]}/__call__"]
        for name in blocks[len(stem) :]:
            yield (top, name), [f"{top}/{name}/__call__"]
    for at in [(stream,) for stream in model.streams] if model.fusion == "late" else [()]:
        prefix = "/".join((*at, ""))
        levels = sorted(name for name in seen if name.startswith(f"{prefix}pyramid/"))
        if at:
            yield at, []
        yield (*at, "temporal_fpn"), levels
        yield (*at, "detection_head"), []
        yield (*at, "detection_head", "proposals"), [f"{prefix}proposal_segments_se", f"{prefix}proposal_features"]
        for index in range(1 if model.share_stages else model.num_stages):
            stage = (*at, "detection_head", f"stage_{index}")
            yield stage, []
            for scope, names in STAGE_OUTPUTS.items():
                yield (*stage, scope), [f"{prefix}stage_{index}/{name}" for name in names]
        if model.clip_head:
            yield (*at, "classification_head"), [f"{prefix}clip_logits"]
    yield (), []
