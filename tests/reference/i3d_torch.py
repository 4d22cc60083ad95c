"""I3D from torch.nn parts, written from the published table: an oracle that shares no code with sptad_jax."""

import math

import torch
import torch.nn.functional as F

LAYOUT = [  # name, what: a convolution (kernel, stride), a pool (kernel, stride) or an Inception block
    ("Conv3d_1a_7x7", "conv", 7, 2),
    ("MaxPool3d_2a_3x3", "pool", (1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", "conv", 1, 1),
    ("Conv3d_2c_3x3", "conv", 3, 1),
    ("MaxPool3d_3a_3x3", "pool", (1, 3, 3), (1, 2, 2)),
    ("Mixed_3b", "mixed", None, None),
    ("Mixed_3c", "mixed", None, None),
    ("MaxPool3d_4a_3x3", "pool", (3, 3, 3), (2, 2, 2)),
    ("Mixed_4b", "mixed", None, None),
    ("Mixed_4c", "mixed", None, None),
    ("Mixed_4d", "mixed", None, None),
    ("Mixed_4e", "mixed", None, None),
    ("Mixed_4f", "mixed", None, None),
    ("MaxPool3d_5a_2x2", "pool", (2, 2, 2), (2, 2, 2)),
    ("Mixed_5b", "mixed", None, None),
    ("Mixed_5c", "mixed", None, None),
]


def pad_same(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """Zero padding of [B, C, T, H, W] by TensorFlow's SAME rule; zero never wins a maximum of post-ReLU values."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def conv_unit(x: torch.Tensor, params: dict, stats: dict, stride: int) -> torch.Tensor:
    """SAME convolution, batch normalisation by running statistics, ReLU."""
    weight = params["conv3d"]["kernel"].permute(4, 3, 0, 1, 2)
    y = F.conv3d(pad_same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
    norm = {**params["batch_norm"], **stats["batch_norm"]}
    return torch.relu(F.batch_norm(y, norm["mean"], norm["var"], norm["scale"], norm["bias"], False, 0.0, 1e-3))


def mixed(x: torch.Tensor, params: dict, stats: dict) -> torch.Tensor:
    """The four branches of an Inception block, joined on channels."""

    def unit(value: torch.Tensor, branch: str, name: str) -> torch.Tensor:
        return conv_unit(value, params[branch][name], stats[branch][name], 1)

    pooled = F.max_pool3d(pad_same(x, (3, 3, 3), (1, 1, 1)), 3, 1)
    return torch.cat(
        [
            unit(x, "Branch_0", "Conv3d_0a_1x1"),
            unit(unit(x, "Branch_1", "Conv3d_0a_1x1"), "Branch_1", "Conv3d_0b_3x3"),
            unit(unit(x, "Branch_2", "Conv3d_0a_1x1"), "Branch_2", "Conv3d_0b_3x3"),
            unit(pooled, "Branch_3", "Conv3d_0b_1x1"),
        ],
        dim=1,
    )


def forward(x: torch.Tensor, params: dict, stats: dict) -> dict[str, torch.Tensor]:
    """[B, C, T, H, W] and trees of tensors -> every end point for which there are parameters, channels first."""
    outputs = {}
    for name, what, kernel, stride in LAYOUT:
        if what != "pool" and name not in params:
            break
        if what == "conv":
            x = conv_unit(x, params[name], stats[name], stride)
        elif what == "pool":
            x = F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
        else:
            x = mixed(x, params[name], stats[name])
        outputs[name] = x
    return outputs
