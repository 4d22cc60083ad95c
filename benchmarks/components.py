"""The detector's own operations, forward and with the gradient, against other ways to compute them and PyTorch's.

    python -m benchmarks.components [--dtype float32 bfloat16] [--batch 4] [--frames 256] [--quick] [--output FILE]

SoI Align: one gather from the joined levels (sptad_jax/models/soi_align.py) against a product with the dense matrix of
hat functions. Dynamic convolution: the whole module, with the layer that makes the matrices and the projection. Max
pools: by axis, what a CPU uses, against XLA's `reduce_window`, what accelerators use. PyTorch is eager, in bfloat16 by
autocast. Sizes are the paper's, windows of 96 x 96 pixels; nothing is timed before all sides agree.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import jax_side, torch_side
from benchmarks.timing import median_ratio, report, time_in_turns
from sptad_jax.config import ModelConfig
from sptad_jax.inference.export import to_torch
from sptad_jax.models import soi_align
from sptad_jax.models.conv3d import Mode, Size3, fit_to_device
from sptad_jax.models.max_pool3d import max_pool3d
from sptad_jax.models.pretrained import flatten
from sptad_jax.models.sparse_interaction import SparseInteraction

Run = Callable[[], Any]
Pair = tuple[Run, Run]  # forward; forward and gradient
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # relative, 2-norm
NETWORK = torch_side.load_network()
MODEL = ModelConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=list(TOLERANCE), default=["float32"])
    parser.add_argument("--batch", type=int, default=4, help="windows (default 4)")
    parser.add_argument("--frames", type=int, default=256, help="of a window (default 256)")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one window of 64 frames, three repeats")
    parser.add_argument("--output", default="", help="JSON file to write")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the card
    batch, frames, repeats = (1, 64, 3) if args.quick else (args.batch, args.frames, args.repeats)
    rows = []
    for dtype in args.dtype:
        torch_side.set_precision(dtype)
        jax_side.set_precision(dtype)
        for where, sides in make_components(batch, frames, dtype):
            for index, what in enumerate(("forward", "forward and gradient")):
                runs = {name: pair[index] for name, pair in sides.items()}
                refuse_difference(f"{where}, {what}", runs, TOLERANCE[dtype])
                seconds = time_in_turns(runs, repeats)
                rows += [{"component": where, "dtype": dtype, "what": what, "side": name,
                          "ms": 1e3 * float(np.median(times)), "to pytorch": median_ratio(times, seconds["pytorch"])}
                         for name, times in seconds.items()]  # fmt: skip
    report("Components", rows, args.output, jax=f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
           torch=torch_side.describe())


def make_components(batch: int, frames: int, dtype: str) -> Iterator[tuple[str, dict[str, Pair]]]:
    yield make_soi_align(batch, frames, dtype)
    yield make_dynamic_convolution(batch, dtype)
    yield make_pool((batch, frames // 2, 48, 48, 64), (1, 3, 3), (1, 2, 2), dtype)  # before Conv3d_2b_1x1
    yield make_pool((batch, frames // 2, 12, 12, 256), (3, 3, 3), (1, 1, 1), dtype)  # in Mixed_3c


def make_soi_align(batch: int, frames: int, dtype: str) -> tuple[str, dict[str, Pair]]:
    """The gradient is by the levels."""
    rng = np.random.default_rng(0)
    lengths = [frames // 2 ** (i + 1) for i in range(4)]
    proposals, bins, hidden, eta = MODEL.num_proposals, MODEL.soi_bins, MODEL.hidden_dim, MODEL.eta
    levels = [rng.standard_normal((batch, length, hidden), np.float32) for length in lengths]
    width = np.exp2(rng.uniform(-4, 1, (batch, proposals, 1)))  # of every level
    segments = (rng.random((batch, proposals, 1)) + width * [-0.5, 0.5]).astype(np.float32)

    def gather(*levels: jax.Array) -> jax.Array:
        return soi_align.read_segments(levels, jnp.asarray(segments), num_bins=bins, convention="aligned",
                                       sampling_ratio=2, level_rule="floor", eta=eta)[0]

    def dense(*levels: jax.Array) -> jax.Array:
        matrix = hat_functions(jnp.asarray(segments), lengths, bins, eta).astype(levels[0].dtype)
        return jnp.einsum("bnkt,btd->bnkd", matrix, jnp.concatenate(levels, axis=1))

    def in_pytorch(*levels: Tensor) -> Tensor:
        return NETWORK.soi_align([x.transpose(1, 2).float() for x in levels], placed, bins, eta)  # as the detector

    placed = torch.tensor(segments, device=torch_side.DEVICE)
    weights = rng.standard_normal((batch, proposals, bins, hidden), np.float32)
    return f"SoI Align, B{batch} N{proposals} K{bins} T{sum(lengths)} D{hidden}", {
        "gather": in_jax(gather, levels, weights, dtype), "dense matrix": in_jax(dense, levels, weights, dtype),
        "pytorch": in_torch(in_pytorch, levels, weights, dtype)}  # fmt: skip


def hat_functions(segments_se: jax.Array, lengths: list[int], bins: int, eta: float) -> jax.Array:
    """[B, N, 2] -> [B, N, K, T]: how much of each step of the joined levels every bin takes."""
    sizes, level = jnp.array(lengths), soi_align.choose_level(segments_se, len(lengths))
    length, offset = sizes[level][..., None, None], (jnp.cumsum(sizes) - sizes)[level][..., None, None]
    start, end = jnp.moveaxis(segments_se, -1, 0)[..., None, None]
    first, extent = start - (end - start) / eta, (end - start) * (1 + 2 / eta)
    samples = (jnp.arange(bins)[:, None] + jnp.array([0.25, 0.75])) / bins
    at = (first + extent * samples) * length - 0.5  # [B, N, K, 2]
    inside = (at >= -1) & (at <= length)
    at = jnp.clip(at, 0, length - 1) + offset
    hats = jnp.maximum(0, 1 - abs(at[..., None] - jnp.arange(sum(lengths)))) * inside[..., None]
    return hats.mean(axis=3)


def make_dynamic_convolution(batch: int, dtype: str) -> tuple[str, dict[str, Pair]]:
    """[B, N, D] and [B, N, K, D] -> [B, N, D]; the gradient is by both and by the parameters."""
    rng = np.random.default_rng(0)
    shape = (batch, MODEL.num_proposals, MODEL.hidden_dim)
    arrays = [rng.standard_normal(s, np.float32) for s in (shape, (*shape[:2], MODEL.soi_bins, shape[2]))]
    module = SparseInteraction(MODEL.dynamic_dim, jnp.dtype(dtype))
    params = jax.jit(module.init)(jax.random.key(0), *arrays)["params"]
    state = {name: torch.tensor(array) for name, array in to_torch(flatten({"params": params})).items()}
    twin = nn.Module()
    for name in {name.rpartition(".")[0] for name in state}:
        twin.add_module(name, NETWORK.make_layer(name, state[f"{name}.weight"].shape, 1))
    twin.load_state_dict(state)
    twin.to(torch_side.DEVICE)

    def interact(x: jax.Array, soi: jax.Array, params: Any) -> jax.Array:
        return module.apply({"params": params}, x, soi)  # type: ignore[return-value]

    weights = rng.standard_normal(shape, np.float32)
    name = f"dynamic convolution, B{batch} N{shape[1]} K{MODEL.soi_bins} D{shape[2]} d{MODEL.dynamic_dim}"
    return name, {"einsum": in_jax(interact, arrays, weights, dtype, params),
                  "pytorch": in_torch(lambda x, soi: NETWORK.interact(twin, x, soi), arrays, weights, dtype,
                                      list(twin.parameters()))}  # fmt: skip


def make_pool(shape: tuple[int, ...], window: Size3, strides: Size3, dtype: str) -> tuple[str, dict[str, Pair]]:
    """[B, T, H, W, C]; PyTorch's maps have the same order in memory (channels_last_3d)."""
    rng = np.random.default_rng(0)
    video = abs(rng.standard_normal(shape, np.float32))  # zeros around it never win
    weights = rng.standard_normal((*(-(-n // s) for n, s in zip(shape[:4], (1, *strides))), shape[4]), np.float32)

    def pool_in_mode(mode: Mode) -> Pair:
        return in_jax(lambda x: max_pool3d(x, window, strides, mode), [video], weights, dtype)

    def in_pytorch(x: Tensor) -> Tensor:
        return torch_side.pool(NETWORK, x.permute(0, 4, 1, 2, 3), window, strides).permute(0, 2, 3, 4, 1)

    name = f"max pool {'x'.join(map(str, window))}, stride {'x'.join(map(str, strides))}, {'x'.join(map(str, shape))}"
    return name, {"by axis": pool_in_mode("decomposed"), "reduce_window": pool_in_mode("direct"),
                  "pytorch": in_torch(in_pytorch, [video], weights, dtype)}  # fmt: skip


def in_jax(function: Callable[..., jax.Array], arrays: list[np.ndarray], weights: np.ndarray, dtype: str,
           *parameters: Any) -> Pair:
    """`weights`: the gradient by the output. Gives the output; gradients by `arrays`, all others computed."""
    inputs = [jnp.asarray(x, dtype) for x in arrays]
    placed = jax.device_put(parameters)
    options = fit_to_device(dataclasses.replace(MODEL, compute_dtype=dtype))[1]  # type: ignore[arg-type]
    forward = jax.jit(function, compiler_options=options)

    def gradient(weights: jax.Array, *inputs: Any) -> Any:
        out, backward = jax.vjp(function, *inputs)
        return out, backward(weights.astype(out.dtype))  # the output, too, or XLA drops it and what it alone needs

    backward, by_output = jax.jit(gradient, compiler_options=options), jnp.asarray(weights)
    return (lambda: [jax.block_until_ready(forward(*inputs, *placed))],
            lambda: jax.block_until_ready(backward(by_output, *inputs, *placed))[1][: len(inputs)])  # fmt: skip


def in_torch(function: Callable[..., Tensor], arrays: list[np.ndarray], weights: np.ndarray, dtype: str,
             parameters: list[nn.Parameter] = []) -> Pair:  # noqa: B006 (read only)
    """The same for a function in PyTorch."""
    device, kind = torch_side.DEVICE, getattr(torch, dtype)
    inputs = [torch.tensor(x, device=device, dtype=kind).requires_grad_() for x in arrays]
    by_output = torch.tensor(weights, device=device)
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward() -> list[Tensor]:
        with torch.inference_mode(), cast:
            out = function(*inputs)
        torch_side.wait()
        return [out]

    def gradient() -> list[Tensor]:
        with cast:
            out = function(*inputs)
        found = torch.autograd.grad(out, [*inputs, *parameters], by_output.to(out.dtype))
        torch_side.wait()
        return list(found[: len(inputs)])

    return forward, gradient


def refuse_difference(where: str, runs: dict[str, Run], tolerance: float) -> None:
    """Ends the program where a side differs from PyTorch's."""
    found = {name: [as_numpy(x) for x in run()] for name, run in runs.items()}
    for name, arrays in found.items():
        for array, expected in zip(arrays, found["pytorch"], strict=True):
            error = float(np.linalg.norm(array - expected) / np.linalg.norm(expected))
            if not error <= tolerance:
                raise SystemExit(f"{where}: {name} and pytorch differ by {error:.1e}, which is more than {tolerance}; "
                                 "they do not compute the same, so nothing was timed.")


def as_numpy(x: jax.Array | Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, np.float32)


if __name__ == "__main__":
    main()
