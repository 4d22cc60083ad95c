"""SP-TAD in PyTorch: reads what `sptad export` writes. Needs torch, numpy and safetensors; nothing of this project.

    model, metadata = load("detector.safetensors")
    with torch.no_grad():
        out = model({"rgb": rgb, "flow": flow}, num_frames)  # uint8 [B, F, H, W, 3] and [B, F, H, W, 2], int [B]

Three of the outputs are those of sptad_jax/inference/predict.py `make_forward`, which `postprocess_video` of
sptad_jax/inference/postprocess.py (NumPy and etils alone) turns into detections. Layers and sizes come from the file;
what they compute is here, for the paper's options (PAPER). Changed or trained further, a detector goes back to `sptad
detect` by `safetensors.torch.save_file(model.state_dict(), path, metadata)`.
"""

import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAPER = {
    "fusion": "early", "end_points": ["Mixed_3c", "Mixed_4f", "Mixed_5c"], "pyramid": "inter", "fpn_norm": "none",
    "fpn_output_conv": True, "fpn_interpolation": "nearest", "fpn_pool_kernel": 1, "fpn_spatial": "mean",
    "soi_align": "aligned", "sampling_ratio": 2, "level_rule": "floor", "share_stages": False, "tower": "paper",
    "delta": "log_width", "clip_segments": False, "stage_features": "post_ffn", "clip_head": True,
    "clip_pooling": "masked",
}  # fmt: skip
POOLS = {  # window and stride of the pool before a layer
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)), "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}  # fmt: skip


def load(path: str) -> tuple["Detector", dict[str, str]]:
    """The detector, ready for inference, and the file's metadata: "config", "classes", "source", "step" in JSON."""
    from safetensors import safe_open  # here, so that the network itself needs torch alone

    with safe_open(path, framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Detector(state, json.loads(metadata["config"])).eval(), metadata


def make_layer(name: str, shape: torch.Size, num_heads: int) -> nn.Module:
    """The layer that has a weight of this shape."""
    if name.endswith(".attention"):
        return nn.MultiheadAttention(shape[1], num_heads, batch_first=True)
    if len(shape) == 1:
        return nn.BatchNorm3d(shape[0], eps=1e-3) if name.endswith(".bn") else nn.LayerNorm(shape[0])
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    if len(shape) == 3:
        return nn.Conv1d(shape[1], shape[0], shape[2], padding=shape[2] // 2)
    return nn.Conv3d(shape[1], shape[0], tuple(shape[2:]), stride=2 if "1a_7x7" in name else 1, bias=False)


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around [B, C, T, H, W] by TensorFlow's SAME rule: an odd one goes behind."""
    totals = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride)]
    return F.pad(x, [pad for total in reversed(totals) for pad in (total // 2, total - total // 2)])


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)  # zeros are harmless after a ReLU


def unit(m: nn.Module, x: Tensor) -> Tensor:
    return m.bn(m.conv3d(pad_same(x, m.conv3d.kernel_size, m.conv3d.stride))).relu()


def i3d(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """[B, C, F, H, W] -> end points."""
    outputs = []
    for name, m in sorted(backbone.named_children()):
        x = pool(x, *POOLS[name]) if name in POOLS else x
        if name.startswith("Mixed"):
            pooled = pool(x, (3, 3, 3), (1, 1, 1))
            branches = [unit(m.b0, x), unit(m.b1b, unit(m.b1a, x)), unit(m.b2b, unit(m.b2a, x)), unit(m.b3b, pooled)]
            x = torch.cat(branches, 1)
        else:
            x = unit(m, x)
        outputs += [x] if name in PAPER["end_points"] else []
    return outputs


def pyramid(m: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """[B, C, T, H, W] each -> [B, D, T] each, finest first, and one more."""
    merged = [m.get_submodule(f"lateral_{i}")(x.mean((3, 4))) for i, x in enumerate(features)]
    for i in reversed(range(len(merged) - 1)):
        merged[i] = merged[i] + merged[i + 1].repeat_interleave(2, 2)[:, :, : merged[i].shape[2]]
    levels = [m.get_submodule(f"output_{i}")(x) for i, x in enumerate(merged)]
    return [*levels, levels[-1][:, :, ::2]]


def soi_align(levels: list[Tensor], segments: Tensor, bins: int, eta: float) -> Tensor:
    """Levels [B, D, T], segments (start, end) [B, N, 2] as share of the window -> [B, N, bins, D]."""
    width, device = segments[..., 1] - segments[..., 0], segments.device
    level = sum((width >= 2.0 ** -i).long() for i in range(len(levels) - 1))  # equation 1
    sizes = torch.tensor([x.shape[2] for x in levels], device=device)
    length, offset = sizes[level][..., None, None], (sizes.cumsum(0) - sizes)[level][..., None, None]
    start, extent = (segments[..., 0] - width / eta)[..., None, None], (width * (1 + 2 / eta))[..., None, None]
    samples = torch.arange(bins, device=device)[:, None] + torch.tensor([0.25, 0.75], device=device)
    at = start * length - 0.5 + samples * (extent * length / bins)
    inside, at = (at >= -1) & (at <= length), torch.minimum(at.clamp(min=0), length - 1)
    low, joined = at.floor().long(), torch.cat(levels, 2).transpose(1, 2)
    batch = torch.arange(len(joined), device=device)[:, None, None, None]
    before, after = (joined[batch, offset + index] for index in (low, torch.minimum(low + 1, length - 1)))
    return (torch.lerp(before, after, (at - low)[..., None]) * inside[..., None]).mean(3)


def interact(m: nn.Module, x: Tensor, soi: Tensor) -> Tensor:
    """Features [B, N, D] and SoI features [B, N, K, D] -> [B, N, D]."""
    first, second = m.generator(x).chunk(2, -1)
    x = m.norm_first(soi @ first.unflatten(-1, (soi.shape[-1], -1))).relu()
    x = m.norm_second(x @ second.unflatten(-1, (-1, soi.shape[-1]))).relu()
    return m.norm_output(m.output(x.flatten(2))).relu()


def run_stage(m: nn.Module, x: Tensor, segments: Tensor, soi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, N, D] and segments [B, N, 2] -> the next ones, and class logits [B, N, A]."""
    x = m.norm_attention(x + m.attention(x, x, x, need_weights=False)[0])
    x = m.norm_interaction(x + interact(m.interaction, x, soi))
    x = m.norm_ffn(x + m.ffn_output(m.ffn_hidden(x).relu()))
    shift, log_width = m.deltas(m.delta_hidden_1(m.delta_hidden_0(x).relu()).relu()).unbind(-1)
    width = segments[..., 1] - segments[..., 0]
    centre, width = segments.mean(-1) + shift / 2 * width, width * log_width.clamp(max=math.log(100_000 / 16)).exp()
    return x, torch.stack([centre - width / 2, centre + width / 2], -1), m.class_logits(x)


def mean_of_real(x: Tensor, num_frames: Tensor, window: int) -> Tensor:
    """Mean of [B, C, T, H, W] over space and the steps whose first frame is no padding -> [B, C]."""
    first = torch.arange(x.shape[2], device=x.device) * math.ceil(window / x.shape[2])
    real = (first < num_frames[:, None]).float()[:, None]
    return (x.mean((3, 4)) * real).sum(2) / real.sum(2).clamp(min=1)


class Detector(nn.Module):
    def __init__(self, state: dict[str, Tensor], config: dict):
        super().__init__()
        self.config, self.crop = config["model"], config["data"]["crop_size"]
        other = [name for name, value in PAPER.items() if self.config[name] != value]
        other += ["pad_value"] if config["data"]["pad_value"] != "zero" else []
        if other:
            raise ValueError(f"only the paper's options are built here; this detector has others for {other}")
        for name, value in state.items():
            prefix, _, leaf = name.rpartition(".")
            if leaf in ("weight", "in_proj_weight") and not prefix.endswith("out_proj"):
                *path, layer = prefix.split(".")
                parent: nn.Module = self
                for part in path:
                    if not hasattr(parent, part):
                        parent.add_module(part, nn.Module())
                    parent = parent.get_submodule(part)
                parent.add_module(layer, make_layer(prefix, value.shape, self.config["num_heads"]))
        for name in ("proposal_segments", "proposal_features"):
            self.detection_head.register_parameter(name, nn.Parameter(state[f"detection_head.{name}"]))
        self.load_state_dict(state)

    def prepare(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Bytes [B, F, H, W, C] -> the central square [B, C, F, crop, crop] in [-1, 1], 0 from num_frames on."""
        top, left = ((size - self.crop) // 2 for size in frames.shape[2:4])
        frames = frames[:, :, top : top + self.crop, left : left + self.crop].float() * 2 / 255 - 1
        real = torch.arange(frames.shape[1], device=frames.device) < num_frames[:, None]
        return (frames * real[:, :, None, None, None]).permute(0, 4, 1, 2, 3)

    def forward(self, windows: dict[str, Tensor], num_frames: Tensor) -> dict[str, Tensor]:
        """-> class_prob [B, N, A], segments_norm (start, end) [B, N, 2], clip_prob [B, A], and both kinds of logits."""
        config, head = self.config, self.detection_head
        inputs = {name: self.prepare(windows[name], num_frames) for name in config["streams"]}
        streams = [i3d(self.get_submodule(f"backbone_{name}"), x) for name, x in inputs.items()]
        features = [torch.cat(level, 1) for level in zip(*streams)]
        levels = pyramid(self.temporal_fpn, features)
        centre, width = head.proposal_segments[:, 0], head.proposal_segments[:, 1].abs().clamp(min=1e-4)
        segments = torch.stack([centre - width / 2, centre + width / 2], -1).expand(len(num_frames), -1, -1)
        x = head.proposal_features.expand(len(num_frames), -1, -1)
        for i in range(config["num_stages"]):
            soi = soi_align(levels, segments, config["soi_bins"], config["eta"])
            x, segments, logits = run_stage(head.get_submodule(f"stage_{i}"), x, segments, soi)
        pooled = torch.cat([mean_of_real(x, num_frames, inputs[config["streams"][0]].shape[2]) for x in features], 1)
        clip_logits = self.classification_head.logits(pooled)
        return {"class_prob": logits.sigmoid(), "segments_norm": segments, "clip_prob": clip_logits.sigmoid(),
                "class_logits": logits, "clip_logits": clip_logits}  # fmt: skip
