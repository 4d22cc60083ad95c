"""What benchmarks/pytorch.py times, in JAX: each `make_` function gives one that runs once and waits, and its FLOPs.

The FLOPs are those of the program before XLA optimises it: afterwards convolutions can be calls that it does not count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import NUM_CLASSES, random_batch
from sptad_jax.config import Config
from sptad_jax.data import augment
from sptad_jax.inference.export import to_torch
from sptad_jax.models.conv3d import fit_to_device
from sptad_jax.models.i3d import I3D
from sptad_jax.models.pretrained import flatten, unflatten
from sptad_jax.models.sptad import SPTAD, final_predictions
from sptad_jax.training.optimizer import make_optimizer
from sptad_jax.training.step import create_state, init_variables, make_train_step

Run = Callable[[], dict[str, Any]]
State = dict[str, np.ndarray]


def describe() -> str:
    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}"


def on_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def set_precision(precision: str) -> None:
    """How float32 products are rounded ("float32", "tf32", "bfloat16"); a CPU always computes them in full."""
    if on_accelerator():
        rounding = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}[precision]
        jax.config.update("jax_default_matmul_precision", rounding)


def peak_bytes() -> int:
    """The most device memory that was allocated; 0 on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) if on_accelerator() else 0


def draw_state(config: Config) -> State:
    """Random variables of the detector, "params/..." and "batch_stats/..."; they are the same for any window."""
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, num_frames=16, crop_size=32))
    return flatten(jax.device_get(init_variables(small, NUM_CLASSES)))


def draw_batch(config: Config) -> dict[str, np.ndarray]:
    """Random bytes, targets of random classes, and random clip classes."""
    rng = np.random.default_rng(1)
    batch = random_batch(config)
    return batch | {"labels": rng.integers(0, NUM_CLASSES, batch["labels"].shape, np.int32),
                    "clip_labels": rng.integers(0, 2, batch["clip_labels"].shape).astype(np.float32)}


def read(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as float32 in NumPy; gradients by PyTorch's names and in its layout, frozen ones left out."""
    outputs = dict(outputs)
    gradient = to_torch(flatten({"params": outputs.pop("gradient", {})}))
    outputs |= {name: value for name, value in gradient.items() if name.endswith("conv3d.weight")}
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def compile_for(config: Config, function: Callable[..., Any], *args: Any) -> tuple[Run, float]:
    lowered = jax.jit(function, compiler_options=fit_to_device(config.model)[1]).lower(*args)
    program = lowered.compile()
    return (lambda: jax.block_until_ready(program(*args))), count_flops(lowered)


def count_flops(lowered: Any) -> float:
    return lowered.cost_analysis()["flops"]


def make_i3d(config: Config, state: State) -> tuple[I3D, dict[str, Any]]:
    """The backbone of RGB, and its variables."""
    model, _ = fit_to_device(config.model)
    variables = {kind: group["backbone_rgb"] for kind, group in unflatten(state).items()}
    return I3D(width_multiplier=model.width_multiplier, end_points=model.end_points, bn_mode=model.bn_mode,
               conv_mode=model.conv_mode, remat=model.remat, dtype=jnp.dtype(model.compute_dtype)), variables


def make_backbone(config: Config, state: State, video: np.ndarray) -> tuple[Run, float]:
    """RGB [B, F, H, W, 3] in [-1, 1] -> end points [B, T, H', W', C]."""
    model, variables = make_i3d(config, state)
    return compile_for(config, model.apply, jax.device_put(variables), jax.device_put(video))


def make_gradient(config: Config, state: State, video: np.ndarray) -> tuple[Run, float]:
    """The sum of RGB's end points, and its gradient by every kernel."""
    model, variables = make_i3d(config, state)

    def sum_of(params: Any, batch_stats: Any, x: jax.Array) -> jax.Array:
        out: Any = model.apply({"params": params, "batch_stats": batch_stats}, x, train=True)
        return jnp.stack([x.sum(dtype=jnp.float32) for x in out.values()]).sum()

    def gradient(params: Any, batch_stats: Any, x: jax.Array) -> dict[str, Any]:
        value, gradient = jax.value_and_grad(sum_of)(params, batch_stats, x)
        return {"sum": value, "gradient": gradient}

    return compile_for(config, gradient, *jax.device_put((variables["params"], variables["batch_stats"], video)))


def make_detector(config: Config, state: State, batch: dict[str, np.ndarray]) -> tuple[Run, float]:
    """Bytes -> the last stage's class probability and segments, and clip probability."""
    model = SPTAD(fit_to_device(config.model)[0], NUM_CLASSES)

    def forward(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs = augment.prepare(batch, config.data, None, train=False)
        frame_mask = jnp.arange(config.data.num_frames) < batch["num_frames"][:, None]
        predictions, _ = model.apply(variables, inputs, frame_mask, train=False)
        class_logits, segments_norm = final_predictions(predictions, config.model)
        return {"class_prob": jax.nn.sigmoid(class_logits), "segments_norm": segments_norm,
                "clip_prob": jax.nn.sigmoid(predictions["clip_logits"])}

    return compile_for(config, forward, *jax.device_put((unflatten(state), batch)))


def make_step(config: Config, state: State, batch: dict[str, np.ndarray]) -> tuple[Run, float]:
    """One training step: gives loss and norm of the gradient, and changes the parameters."""
    variables, batch = jax.tree.map(jnp.array, (unflatten(state), batch))  # copies: the step gives its state away
    tx, _, _ = make_optimizer(variables["params"], config, 100)
    train_state = create_state(variables, tx, config)
    lowered = make_train_step(config, NUM_CLASSES, tx, None).lower(train_state, batch)  # type: ignore[attr-defined]
    program = lowered.compile()

    def run() -> dict[str, Any]:
        nonlocal train_state
        train_state, metrics = program(train_state, batch)
        jax.block_until_ready((train_state, metrics))
        return {"loss": metrics["loss"], "gradient norm": metrics["grad_norm"]}

    return run, count_flops(lowered)
