"""AdamW, groups and schedules against PyTorch and closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import Config, apply_overrides
from sptad_jax.training import optimizer


def parameters(seed=0):
    """A tree named as the detector's."""
    rng = np.random.default_rng(seed)
    shapes = {
        "backbone_rgb": {"Conv3d_1a_7x7": {"conv3d": {"kernel": (3, 4)}, "batch_norm": {"scale": (4,), "bias": (4,)}}},
        "temporal_fpn": {"lateral_0": {"kernel": (4, 2), "bias": (2,)}},
        "detection_head": {"proposal_segments": (3, 2), "stage_0": {"norm": {"scale": (2,), "bias": (2,)}}},
    }
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes,
                        is_leaf=lambda x: isinstance(x, tuple))


def configured(*assignments):
    return apply_overrides(Config(), assignments)


def run(config, params, gradients, steps_per_epoch=10):
    """Applies the optimiser to a list of gradients; returns every state of the parameters."""
    tx, _, _ = optimizer.make_optimizer(params, config, steps_per_epoch)
    state, history = tx.init(params), []

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(params)
    return history


def flat(tree):
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("decay_mask", ["all", "kernels"])
def test_equals_torch_adamw(decay_mask, parity):
    """Coupled decay, another epsilon, a clip after Adam or per group, a late drop, a multiplier that is not applied."""
    torch = pytest.importorskip("torch")
    config = configured("model.bn_mode=train", "train.learning_rate=0.01", "train.weight_decay=0.1",
                        "train.clip_norm=2", "train.lr_drop_epochs=[1.2]", "train.epochs=2",
                        "train.backbone_lr_multiplier=0.3", f"train.decay_mask={decay_mask}")
    params = parameters()
    gradients = [jax.tree.map(lambda x, k=k: x * (0.2 + k % 4), parameters(k + 1)) for k in range(20)]
    history = run(config, params, gradients)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in flat(params).items()}
    adam = torch.optim.AdamW([{"params": [tensor], "lr": 0.01 * (0.3 if name.startswith("backbone_") else 1.0),
                               "weight_decay": 0.1 if decay_mask == "all" or name.endswith("kernel") else 0.0}
                              for name, tensor in tensors.items()])
    for k, gradient in enumerate(gradients):
        for name, value in flat(gradient).items():
            tensors[name].grad = torch.tensor(value)
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 2.0)
        if k == 12:  # 1.2 epochs of 10 steps
            for group in adam.param_groups:
                group["lr"] *= 0.1
        adam.step()
        parity("parameters after each step", flat(history[k]), tensors)


def rate_by_hand(schedule, step):
    """Share of the learning rate for 50 steps: warm-up over 6 from 1 %, drops at 25 and 40, or a cosine to 0 at 50."""
    warm = 0.01 + 0.99 * min(step / 6, 1)
    if schedule == "step":
        return warm * 0.1 ** ((step >= 25) + (step >= 40))
    return warm * 0.5 * (1 + math.cos(math.pi * max(step - 6, 0) / 44))


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_fifty_scheduled_steps_equal_torch(schedule, precision, parity):
    """A schedule that is a step late, a rate that decay does not follow, moments that drift apart: each side steps by
    gradients at its own parameters, so that a difference would grow."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_trees import cast, tensors

    config = configured("model.bn_mode=train", "train.learning_rate=0.05", "train.weight_decay=0.1", "train.epochs=5",
                        "train.clip_norm=2", "train.lr_drop_epochs=[2.5,4]", "train.warmup_steps=6",
                        "train.backbone_lr_multiplier=0.3", f"train.schedule={schedule}")
    params = cast(parameters(), precision)
    noise = [cast(parameters(k + 1), precision) for k in range(50)]
    theirs = tensors(params)
    adam = torch.optim.AdamW([{"params": jax.tree.leaves(theirs[name]), "weight_decay": 0.1,
                               "lr": 0.05 * (0.3 if name.startswith("backbone_") else 1.0)} for name in theirs])
    rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: rate_by_hand(schedule, step))
    tx, _, _ = optimizer.make_optimizer(params, config, 10)

    @jax.jit
    def step(params, state, noise):
        updates, state = tx.update(jax.tree.map(lambda p, n: 0.3 * p + n, params, noise), state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    ours, state = params, tx.init(params)
    for k in range(50):
        ours, state = step(ours, state, noise[k])
        for tensor, n in zip(jax.tree.leaves(theirs), jax.tree.leaves(noise[k])):
            tensor.grad = 0.3 * tensor.detach() + torch.tensor(n)
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in jax.tree.leaves(theirs)]).item()
        for tensor in jax.tree.leaves(theirs):
            tensor.grad *= min(1.0, 2.0 / norm)  # torch's own clip divides by the norm + 1e-6, which float64 shows
        adam.step()
        rates.step()
        parity(f"parameters, {schedule} schedule", ours, theirs)


@pytest.mark.parametrize(("assignments", "frozen"), [
    (("train.backbone_lr_multiplier=0",), ("backbone_rgb",)),
    (("model.bn_mode=frozen",), ("backbone_rgb/Conv3d_1a_7x7/batch_norm",)),
    (("model.bn_mode=frozen_stats",), ()),
    (("model.bn_mode=train",), ()),
])
def test_frozen_parameters_do_not_move_at_all(assignments, frozen):
    """Decay or momentum that moves what is frozen; a trainable tensor that is frozen by accident."""
    params = parameters()
    history = run(configured(*assignments, "train.weight_decay=0.5", "train.learning_rate=0.1"), params,
                  [parameters(k + 1) for k in range(3)])
    for name, value in flat(history[-1]).items():
        still = np.array_equal(value, flat(params)[name])
        assert still == any(name.startswith(prefix) for prefix in frozen), name


def test_head_norms_are_not_frozen_with_batch_norm():
    """A rule for batch norms that catches others' scales and biases: those outside a backbone."""
    params = {"temporal_fpn": {"batch_norm": {"scale": jnp.ones(2)}}, "backbone_flow": {"kernel": jnp.ones(3)}}
    labels = optimizer.label_parameters(params, Config())
    assert jax.tree.leaves(labels) == ["backbone", "head"]


def test_backbone_below_a_detector_is_backbone():
    """Late fusion keeps each stream's modules under the stream's name."""
    params = {"rgb": {"backbone_rgb": {"kernel": jnp.ones(3)}, "detection_head": {"kernel": jnp.ones(2)}}}
    assert jax.tree.leaves(optimizer.label_parameters(params, Config())) == ["backbone", "head"]


def first_moments(tx, gradient, params):
    """Adam's first moments after a step from rest: 0.1 times the clipped gradient."""
    _, state = tx.update(gradient, tx.init(params), params)
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path)]


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
def test_clipping_excludes_the_frozen(clip_norm):
    """Frozen gradients that shrink the step of the others; a clip per group; a clip that cannot be switched off."""
    params = parameters()
    gradient = parameters(1)
    gradient["backbone_rgb"] = jax.tree.map(lambda x: x * 1e6, gradient["backbone_rgb"])
    config = configured("train.backbone_lr_multiplier=0", f"train.clip_norm={clip_norm}")
    tx, _, _ = optimizer.make_optimizer(params, config, 10)
    trained = [leaf for name, leaf in flat(gradient).items() if not name.startswith("backbone_")]
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in trained))
    factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
    moments = first_moments(tx, gradient, params)
    assert len(moments) == len(trained)
    found = math.sqrt(sum(float((leaf**2).sum()) for leaf in moments))
    np.testing.assert_allclose(found, 0.1 * factor * norm, rtol=1e-4)


def test_clipping_uses_the_norm_of_both_groups():
    """A norm per group, which lets backbone and head each have a whole step."""
    params, gradient = parameters(), parameters(1)
    tx, _, _ = optimizer.make_optimizer(params, configured("model.bn_mode=train", "train.clip_norm=0.5"), 10)
    moments = first_moments(tx, gradient, params)
    np.testing.assert_allclose(math.sqrt(sum(float((leaf**2).sum()) for leaf in moments)), 0.05, rtol=1e-4)


def test_groups_table():
    """Counts of tensors instead of numbers, or a rate that is not the group's; shapes must do for parameters."""
    params = jax.eval_shape(parameters)
    config = configured("train.backbone_lr_multiplier=0.1", "train.learning_rate=0.5")
    _, _, groups = optimizer.make_optimizer(params, config, 10)
    assert [tuple(group) for group in groups] == [("frozen", 8, 0.0), ("backbone", 12, 0.05), ("head", 20, 0.5)]
    _, _, groups = optimizer.make_optimizer(params, configured("train.backbone_lr_multiplier=0"), 10)
    assert [tuple(group) for group in groups] == [("frozen", 20, 0.0), ("backbone", 0, 0.0), ("head", 20, 1e-4)]


def schedule_of(*assignments, steps_per_epoch=10):
    return optimizer.make_schedule(configured(*assignments).train, steps_per_epoch)


def test_step_schedule_of_the_paper():
    """A drop one step early or late: 1e-4 for the first 12 epochs, 1e-5 for the following 4 (paper 4.1)."""
    schedule = schedule_of(steps_per_epoch=490)
    found = [float(schedule(step)) for step in (0, 490, 5879, 5880, 7839)]
    np.testing.assert_allclose(found, [1e-4, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_several_drops_and_none():
    """Drops that replace each other instead of multiplying; an empty list."""
    schedule = schedule_of("train.lr_drop_epochs=[1, 2.5]", "train.lr_drop_factor=0.5")
    np.testing.assert_allclose([float(schedule(s)) * 1e4 for s in (9, 10, 24, 25, 99)], [1, 0.5, 0.5, 0.25, 0.25], 1e-5)
    for never in ("[]", "[1e9]"):  # the latter overflows a step's integer
        assert float(schedule_of(f"train.lr_drop_epochs={never}")(99)) == pytest.approx(1e-4)


def test_warmup():
    """A warm-up from 0 (a lost step), one that never ends, or one that switches the drop off."""
    schedule = schedule_of("train.warmup_steps=10", "train.lr_drop_epochs=[2]")
    np.testing.assert_allclose([float(schedule(s)) * 1e4 for s in (0, 5, 10, 19, 20)], [0.01, 0.505, 1, 1, 0.1], 1e-5)


def test_cosine_schedule():
    """A cosine over epochs instead of steps, that starts before the warm-up's end or rises after the last step."""
    schedule = schedule_of("train.schedule=cosine", "train.epochs=4", "train.warmup_steps=8")
    steps = np.arange(8, 41)
    expected = 0.5e-4 * (1 + np.cos(np.pi * (steps - 8) / 32))
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-4, atol=1e-11)
    assert float(schedule(0)) == pytest.approx(1e-6) and float(schedule(60)) < 1e-11


def test_ema():
    """Decay applied to the new value instead of the average; an average that keeps the random start of a short run."""
    for step, share in ((10**6, 0.9), (81, 0.9), (80, 81 / 90), (8, 0.5), (0, 0.1)):
        found = optimizer.update_ema({"a": jnp.array([1.0])}, {"a": jnp.array([3.0])}, 0.9, jnp.int32(step))
        np.testing.assert_allclose(found["a"], [share * 1 + (1 - share) * 3], rtol=1e-6)
        assert found["a"].dtype == jnp.float32


def test_updates_need_no_other_option():
    """An optimiser that depends on options outside `train` and `model.bn_mode`, so that a resumed run could differ."""
    other = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, num_frames=64))
    histories = [run(config, parameters(), [parameters(1)]) for config in (Config(), other)]
    jax.tree.map(np.testing.assert_array_equal, *histories)
