"""One detection stage from torch.nn parts, fed with the parameters of the Flax module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(params: dict, x: Tensor) -> Tensor:
    bias = torch.tensor(params["bias"]) if "bias" in params else None
    return F.linear(x, torch.tensor(params["kernel"]).T, bias)


def norm(params: dict, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], torch.tensor(params["scale"]), torch.tensor(params["bias"]), 1e-5)


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
    attention = nn.MultiheadAttention(hidden, num_heads, batch_first=True)
    names = ("query", "key", "value")
    state = {
        "in_proj_weight": torch.cat([torch.tensor(params[n]["kernel"]).reshape(hidden, hidden).T for n in names]),
        "in_proj_bias": torch.cat([torch.tensor(params[n]["bias"]).reshape(hidden) for n in names]),
        "out_proj.weight": torch.tensor(params["attention_output"]["kernel"]).reshape(hidden, hidden).T,
        "out_proj.bias": torch.tensor(params["attention_output"]["bias"]),
    }
    attention.load_state_dict(state)
    return attention(x, x, x, need_weights=False)[0]


@torch.no_grad()
def run_stage(params: dict, features: Tensor, soi: Tensor, *, num_heads: int, dynamic_dim: int, tower: str):
    """-> class logits [B, N, A], deltas [B, N, 2], features before and after the feed-forward network."""
    x = norm(params["norm_attention"], features + attend(params, features, num_heads))
    x = before = norm(params["norm_interaction"], x + interact(params["interaction"], x, soi, dynamic_dim))
    x = norm(params["norm_ffn"], x + linear(params["ffn_output"], F.relu(linear(params["ffn_hidden"], x))))
    class_x = delta_x = x
    if tower == "paper":
        for i in range(2):
            delta_x = F.relu(linear(params[f"delta_hidden_{i}"], delta_x))
    else:
        class_x = F.relu(norm(params["class_hidden_0_norm"], linear(params["class_hidden_0"], x)))
        for i in range(3):
            delta_x = F.relu(norm(params[f"delta_hidden_{i}_norm"], linear(params[f"delta_hidden_{i}"], delta_x)))
    return linear(params["class_logits"], class_x), linear(params["deltas"], delta_x), before, x
