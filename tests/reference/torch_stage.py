"""One detection stage and the stack of them from torch.nn parts, fed with the parameters of the Flax modules."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sptad_jax.config import ModelConfig
from tests.reference.torch_soi_align import read_segments


def linear(params: dict, x: Tensor) -> Tensor:
    return F.linear(x, params["kernel"].T, params.get("bias"))


def norm(params: dict, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], 1e-5)


def interact(params: dict, features: Tensor, soi: Tensor, dynamic_dim: int) -> Tensor:
    """[B, N, D], [B, N, K, D] -> [B, N, D], proposals as the batch of `bmm`."""
    batch, num, bins, hidden = soi.shape
    generated = linear(params["generator"], features.reshape(batch * num, hidden))
    first = generated[:, : hidden * dynamic_dim].reshape(-1, hidden, dynamic_dim)
    second = generated[:, hidden * dynamic_dim :].reshape(-1, dynamic_dim, hidden)
    x = F.relu(norm(params["norm_first"], torch.bmm(soi.reshape(-1, bins, hidden), first)))
    x = F.relu(norm(params["norm_second"], torch.bmm(x, second)))
    x = F.relu(norm(params["norm_output"], linear(params["output"], x.flatten(1))))
    return x.reshape(batch, num, hidden)


def attend(params: dict, x: Tensor, num_heads: int) -> Tensor:
    """torch.nn.MultiheadAttention with the weights of the query, key, value and output layers."""
    hidden = x.shape[-1]
    attention = nn.MultiheadAttention(hidden, num_heads, batch_first=True, dtype=x.dtype)
    names = ("query", "key", "value")
    state = {
        "in_proj_weight": torch.cat([params[name]["kernel"].reshape(hidden, hidden).T for name in names]),
        "in_proj_bias": torch.cat([params[name]["bias"].reshape(hidden) for name in names]),
        "out_proj.weight": params["attention_output"]["kernel"].reshape(hidden, hidden).T,
        "out_proj.bias": params["attention_output"]["bias"],
    }
    return torch.func.functional_call(attention, state, (x, x, x), {"need_weights": False}, strict=True)[0]


def run_stage(params: dict, features: Tensor, soi: Tensor, config: ModelConfig):
    """-> class logits [B, N, A], deltas [B, N, 2], features before and after the feed-forward network."""
    x = norm(params["norm_attention"], features + attend(params, features, config.num_heads))
    x = before = norm(params["norm_interaction"], x + interact(params["interaction"], x, soi, config.dynamic_dim))
    x = norm(params["norm_ffn"], x + linear(params["ffn_output"], F.relu(linear(params["ffn_hidden"], x))))
    class_x = delta_x = x
    if config.tower == "paper":
        for i in range(2):
            delta_x = F.relu(linear(params[f"delta_hidden_{i}"], delta_x))
    else:
        class_x = F.relu(norm(params["class_hidden_0_norm"], linear(params["class_hidden_0"], x)))
        for i in range(3):
            delta_x = F.relu(norm(params[f"delta_hidden_{i}_norm"], linear(params[f"delta_hidden_{i}"], delta_x)))
    return linear(params["class_logits"], class_x), linear(params["deltas"], delta_x), before, x


def refine(segments_se: Tensor, deltas: Tensor, parametrisation: str) -> Tensor:
    """Segments (start, end) [B, N, 2] moved by the regressed deltas of centre and width."""
    start, end = segments_se.unbind(-1)
    centre, width = (start + end) / 2, end - start
    shift, grow = deltas.unbind(-1)
    if parametrisation == "inverse_sigmoid":
        centre = torch.sigmoid(shift + torch.logit(centre, 1e-3))
        width = torch.sigmoid(grow + torch.logit(width, 1e-3))
    else:
        centre = centre + shift / 2 * width
        width = width * grow.clamp(max=math.log(100000 / 16)).exp()
    return torch.stack([centre - width / 2, centre + width / 2], dim=-1)


def run_head(params: dict, levels: list[Tensor], config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Pyramid levels [B, T_l, D] -> class logits [S, B, N, A] and segments (start, end) [S, B, N, 2]."""
    batch = len(levels[0])
    centre, width = params["proposal_segments"].unbind(-1)
    segments_se = torch.stack([centre - width / 2, centre + width / 2], dim=-1).expand(batch, -1, -1)
    features = params["proposal_features"].expand(batch, -1, -1)
    all_logits, all_segments = [], []
    for k in range(config.num_stages):
        stage = params[f"stage_{0 if config.share_stages else k}"]
        soi = read_segments(levels, segments_se.detach(), config)
        logits, deltas, before, after = run_stage(stage, features, soi, config)
        refined = refine(segments_se, deltas, config.delta)
        all_logits.append(logits)
        all_segments.append(refined)
        segments_se = refined.detach() if config.detach_segments else refined
        features = after if config.stage_features == "post_ffn" else before
    return torch.stack(all_logits), torch.stack(all_segments)
