"""A stage and the stack of four against torch.nn parts with copied weights: outputs and all gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from sptad_jax.config import ModelConfig
from sptad_jax.models.detection_head import DetectionHead
from tests.reference.parameters import draw_variables, run_once

TINY = ModelConfig(hidden_dim=16, num_heads=4, dynamic_dim=6, ffn_dim=24, soi_bins=4, num_proposals=5)


def compare(config, num_classes, precision, parity):
    """Logits and segments of all stages, and the gradients of a random combination of them."""
    import torch

    from tests.reference.torch_stage import run_head
    from tests.reference.torch_trees import cast, gradients, tensors

    rng = np.random.default_rng(1)
    levels = cast([rng.normal(size=(2, t, config.hidden_dim)) for t in (16, 8, 4, 2)], precision)
    head = DetectionHead(config, num_classes, np.dtype(precision))
    params = cast(draw_variables(head, levels, train=False)["params"], precision)
    for name, stage in params.items():
        if name.startswith("stage_"):  # so that segments stay near the window, where there is much to read
            stage["deltas"]["kernel"] *= 0.3
    leading = (config.num_stages, 2, config.num_proposals)
    weights = cast((rng.normal(size=(*leading, num_classes)), rng.normal(size=(*leading, 2))), precision)

    def combine(params, levels):
        logits, segments_se, _ = head.apply({"params": params}, levels, train=False)
        return (logits * weights[0]).sum() + (segments_se * weights[1]).sum(), (logits, segments_se)

    (by_params, by_levels), ours = run_once(jax.grad(combine, (0, 1), has_aux=True), params, levels)
    params_t, levels_t = tensors(params), tensors(levels)
    theirs = run_head(params_t, levels_t, config)
    torch.autograd.backward(theirs, [torch.tensor(x) for x in weights])
    parity("class logits", ours[0], theirs[0])
    parity("segments", ours[1], theirs[1])
    parity("gradients by all parameters", by_params, gradients(params_t))
    parity("gradients by the pyramid levels", by_levels, gradients(levels_t))


@pytest.mark.parametrize("tower", ["paper", "sparse_rcnn"])
def test_one_stage(tower, precision, parity):
    """A wrong norm, residual, head of attention, half of the generator, branch or delta; one that only its gradient
    shows, as a stop-gradient too many."""
    pytest.importorskip("torch")
    compare(dataclasses.replace(TINY, num_stages=1, tower=tower), 3, precision, parity)


# in float64 alone: among the half million ReLUs one may well lie within float32's rounding of its corner
@pytest.mark.parametrize("precision", ["float64"], indirect=True)
def test_one_stage_at_the_papers_width(precision, parity):
    """A fault that shows at 256 channels, 8 heads and 50 proposals alone, as a scale by the wrong dimension."""
    pytest.importorskip("torch")
    compare(ModelConfig(num_stages=1), 20, precision, parity)


ALL_OTHER = {
    "detach_segments": False, "stage_features": "pre_ffn", "share_stages": True, "delta": "inverse_sigmoid",
    "soi_align": "legacy", "sampling_ratio": 0, "level_rule": "round",
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, ALL_OTHER], ids=["defaults", "all_other"])
def test_four_stages(changes, precision, parity):
    """A hand-over of the wrong segments or features, a stop-gradient missing or too many between stages, parameters of
    another stage, an option that acts in the first stage alone."""
    pytest.importorskip("torch")
    compare(dataclasses.replace(TINY, **changes), 3, precision, parity)
