"""What benchmarks/pytorch.py times, in PyTorch: each `make_` function gives one that runs once and waits for the end.

The layers are those of docs/torch_detector.py, with 3-D maps in channels_last_3d. I3D is written anew: padding that is
alike on both sides is left to the layers, where the one there copies every map first (15 % of a float32 forward pass).
BatchNorm is a layer of its own, frozen. Imports nothing of JAX, so that a process that measures memory holds none.
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sptad_jax.config import Config, LossConfig, to_dict

Run = Callable[[], dict[str, Any]]
State = dict[str, np.ndarray]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def describe() -> str:
    return f"torch {torch.__version__} on {torch.cuda.get_device_name() if DEVICE == 'cuda' else 'cpu'}"


def set_precision(precision: str) -> None:
    """How float32 products are rounded ("float32", "tf32", "bfloat16"); bfloat16 itself comes by autocast."""
    if DEVICE == "cuda":
        torch.backends.cudnn.benchmark = True  # as XLA, which tries every algorithm too
        rounding = "ieee" if precision == "float32" else "tf32"
        torch.backends.cuda.matmul.fp32_precision = rounding
        torch.backends.cudnn.conv.fp32_precision = rounding  # type: ignore[attr-defined]


def peak_bytes() -> int:
    """The most device memory that was allocated; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def read(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().float().cpu().numpy() for name, value in outputs.items()}


def load_network() -> ModuleType:
    path = pathlib.Path(__file__).parents[1] / "docs" / "torch_detector.py"
    spec = importlib.util.spec_from_file_location("torch_detector", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(network: ModuleType, config: Config, state: State) -> Any:
    """The detector; as in the paper's setting, BatchNorm has neither new statistics nor gradients."""
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    model = network.Detector(tensors, json.loads(json.dumps(to_dict(config))))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.requires_grad_(False)
    return model.eval().to(DEVICE, memory_format=torch.channels_last_3d)


def place(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(value).to(DEVICE) for name, value in batch.items()}


def autocast(config: Config) -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=config.model.compute_dtype == "bfloat16")


def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """`torch.compile` in that mode; "" leaves the function as it is."""
    return torch.compile(function, mode=mode) if mode else function


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def pad(network: ModuleType, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """SAME padding of [B, C, T, H, W]: the map, padded where one side gets more, and what is left to the layer."""
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride)]
    if any(total % 2 for total in totals):
        return network.pad_same(x, kernel, stride), [0, 0, 0]
    return x, [total // 2 for total in totals]


def unit(network: ModuleType, m: Any, x: Tensor) -> Tensor:
    x, padding = pad(network, x, m.conv3d.kernel_size, m.conv3d.stride)
    return m.bn(F.conv3d(x, m.conv3d.weight, None, m.conv3d.stride, padding)).relu_()


def pool(network: ModuleType, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    x, padding = pad(network, x, kernel, stride)
    return F.max_pool3d(x, kernel, stride, padding)


def i3d(network: ModuleType, backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """[B, C, F, H, W] -> end points [B, C', T, H', W']."""
    outputs: dict[str, Tensor] = {}
    for name, m in sorted(backbone.named_children()):
        x = pool(network, x, *network.POOLS[name]) if name in network.POOLS else x
        if name.startswith("Mixed"):
            pooled = pool(network, x, (3, 3, 3), (1, 1, 1))
            x = torch.cat([unit(network, m.b0, x), unit(network, m.b1b, unit(network, m.b1a, x)),
                           unit(network, m.b2b, unit(network, m.b2a, x)), unit(network, m.b3b, pooled)], 1)
        else:
            x = unit(network, m, x)
        outputs |= {name: x} if name in network.PAPER["end_points"] else {}
    return outputs


def detect(network: ModuleType, model: Any, windows: dict[str, Tensor], num_frames: Tensor) -> dict[str, Tensor]:
    """Bytes -> class_logits [S, B, N, A], segments_se [S, B, N, 2], clip_logits [B, A]; no gradient between stages."""
    config, head = model.config, model.detection_head
    inputs = {name: model.prepare(windows[name], num_frames) for name in config["streams"]}
    streams = [i3d(network, model.get_submodule(f"backbone_{name}"), x) for name, x in inputs.items()]
    features = [torch.cat([end_points[name] for end_points in streams], 1) for name in config["end_points"]]
    levels = [x.float() for x in network.pyramid(model.temporal_fpn, features)]  # SoI Align interpolates in float32
    centre, width = head.proposal_segments[:, 0], head.proposal_segments[:, 1].abs().clamp(min=1e-4)
    segments = torch.stack([centre - width / 2, centre + width / 2], -1).expand(len(num_frames), -1, -1)
    x = head.proposal_features.expand(len(num_frames), -1, -1)
    logits, refined = [], []
    for i in range(config["num_stages"]):
        soi = network.soi_align(levels, segments.detach(), config["soi_bins"], config["eta"])
        x, segments, stage_logits = network.run_stage(head.get_submodule(f"stage_{i}"), x, segments, soi)
        logits.append(stage_logits.float())
        refined.append(segments)
        segments = segments.detach()
    window = inputs[config["streams"][0]].shape[2]
    pooled = torch.cat([network.mean_of_real(x, num_frames, window) for x in features], 1)
    clip_logits = model.classification_head.logits(pooled).float()
    return {"class_logits": torch.stack(logits), "segments_se": torch.stack(refined), "clip_logits": clip_logits}


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised tIoU of (start, end) [..., 2], shapes broadcast."""
    inside = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inside
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return inside / union - (hull - union) / hull


@torch.no_grad()
def match(logits: Tensor, segments: Tensor, batch: dict[str, Tensor], valid: np.ndarray, config: LossConfig) -> Any:
    """SciPy's assignment of every stage and window -> index tensors (stage, window, proposal, target) of the pairs."""
    p = logits.sigmoid()
    alpha, gamma = config.focal_alpha, config.focal_gamma
    by_class = alpha * (1 - p) ** gamma * -(p + 1e-8).log() - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    columns = batch["labels"].long()[None, :, None, :].expand(*logits.shape[:3], -1)
    predicted, target = segments[:, :, :, None], batch["segments_norm"][None, :, None]
    cost = (config.class_cost * by_class.gather(-1, columns) + config.l1_cost * (predicted - target).abs().sum(-1)
            - config.giou_cost * giou(predicted, target)).cpu().numpy()
    pairs = []
    for stage, window in np.ndindex(cost.shape[:2]):
        (real,) = np.nonzero(valid[window])
        proposals, targets = scipy.optimize.linear_sum_assignment(cost[stage, window][:, real])
        pairs += [(stage, window, n, m) for n, m in zip(proposals, real[targets])]
    return torch.tensor(np.array(pairs, np.int64).reshape(-1, 4), device=logits.device).unbind(1)


def compute_loss(out: dict[str, Tensor], batch: dict[str, Tensor], valid: np.ndarray, config: LossConfig) -> Tensor:
    """Equation 2 with the default options of sptad_jax/training/losses.py."""
    logits, segments = out["class_logits"], out["segments_se"]
    stage, window, proposal, target = match(logits, segments, batch, valid, config)
    wanted = torch.zeros_like(logits)
    wanted[stage, window, proposal, batch["labels"].long()[window, target]] = 1
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p, alpha = logits.sigmoid(), config.focal_alpha
    weight = (alpha * wanted + (1 - alpha) * (1 - wanted)) * (p + wanted - 2 * p * wanted) ** config.focal_gamma
    a, b = segments[stage, window, proposal], batch["segments_norm"][window, target]
    terms = (config.class_weight * (weight * cross_entropy).sum() + config.l1_weight * (a - b).abs().sum()
             + config.giou_weight * (1 - giou(a, b)).sum())
    action = F.binary_cross_entropy_with_logits(out["clip_logits"], batch["clip_labels"])
    return terms / max(int(valid.sum()), 1) + config.action_weight * action


def make_backbone(config: Config, state: State, video: np.ndarray, mode: str = "") -> Run:
    """RGB [B, F, H, W, 3] in [-1, 1] -> end points [B, T, H', W', C]."""
    network = load_network()
    backbone = build(network, config, state).backbone_rgb
    x = torch.tensor(video).to(DEVICE).permute(0, 4, 1, 2, 3)  # channels_last_3d by its strides
    forward = compiled(lambda x: i3d(network, backbone, x), mode)

    @torch.inference_mode()
    def run() -> dict[str, Any]:
        with autocast(config):
            out = forward(x)
        wait()
        return {name: value.permute(0, 2, 3, 4, 1) for name, value in out.items()}

    return run


def make_gradient(config: Config, state: State, video: np.ndarray, mode: str = "") -> Run:
    """The sum of RGB's end points, and its gradient by every kernel."""
    network = load_network()
    backbone = build(network, config, state).backbone_rgb
    x = torch.tensor(video).to(DEVICE).permute(0, 4, 1, 2, 3)
    forward = compiled(lambda x: i3d(network, backbone, x), mode)

    def run() -> dict[str, Any]:
        backbone.zero_grad()
        with autocast(config):
            out = forward(x)
        value = sum(x.sum(dtype=torch.float32) for x in out.values())
        value.backward()
        wait()
        return {"sum": value} | {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}

    return run


def make_detector(config: Config, state: State, batch: dict[str, np.ndarray], mode: str = "") -> Run:
    """Bytes -> the last stage's class probability and segments, and clip probability."""
    network, windows = load_network(), place(batch)
    model = build(network, config, state)
    forward = compiled(lambda windows: detect(network, model, windows, windows["num_frames"]), mode)

    @torch.inference_mode()
    def run() -> dict[str, Any]:
        with autocast(config):
            out = forward(windows)
        result = {"class_prob": out["class_logits"][-1].sigmoid(), "segments_norm": out["segments_se"][-1],
                  "clip_prob": out["clip_logits"].sigmoid()}
        wait()
        return result

    return run


def make_step(config: Config, state: State, batch: dict[str, np.ndarray], mode: str = "") -> Run:
    """One training step: gives loss and norm of the gradient, and changes the parameters."""
    network, tensors, train = load_network(), place(batch), config.train
    model = build(network, config, state)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, train.learning_rate, weight_decay=train.weight_decay, fused=True)
    forward = compiled(lambda windows: detect(network, model, windows, windows["num_frames"]), mode)

    def run() -> dict[str, Any]:
        with autocast(config):
            out = forward(tensors)
        loss = compute_loss(out, tensors, batch["valid"], config.loss)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        optimizer.step()
        wait()
        return {"loss": loss, "gradient norm": norm}

    return run
