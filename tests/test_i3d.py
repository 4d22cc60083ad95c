"""I3D against PyTorch's operators, slow NumPy loops and the published shapes and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.errors import UserError
from sptad_jax.models import conv3d, i3d
from tests.reference.arrays import close, normal
from tests.reference.parameters import draw_variables, run_once


def small_model(**options):
    """A narrow network with random, non-trivial statistics and affine parameters, and its input.

    Cut after Mixed_3b unless told otherwise: compiling the gradient of the whole network takes most of a test's time.
    """
    model = i3d.I3D(**{"width_multiplier": 0.125, "conv_mode": "decomposed", "end_points": ("Mixed_3b",), **options})
    x = normal(0, (1, 16, 32, 32, 3))
    variables = draw_variables(model, x)
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    rng = np.random.default_rng(1)
    ranges = {"scale": (0.7, 1.3), "var": (0.5, 1.5), "mean": (-0.2, 0.2), "bias": (-0.1, 0.2)}
    values = [rng.uniform(*ranges[p[-1].key], v.shape).astype(np.float32) if p[-1].key in ranges else np.asarray(v)
              for p, v in leaves]  # fmt: skip
    return model, jax.tree.unflatten(tree, values), x


def loss_and_gradients(model, variables, x, train=False):
    def loss(params, x):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, updated = model.apply(variables_, x, train=train, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.square(y.astype(jnp.float32))) for y in outputs.values()), updated

    (value, updated), gradients = run_once(jax.value_and_grad(loss, (0, 1), has_aux=True), variables["params"], x)
    return value, gradients[0], gradients[1], updated["batch_stats"]


@pytest.mark.parametrize(("channels", "parameters"), [(3, 12_287_264), (2, 12_265_312)])
def test_published_shapes_and_parameter_counts(channels, parameters):
    """Catches a wrong width, stride, end point or a forgotten layer: 12.29 M (RGB), 12.27 M (flow), paper 3.1.1."""
    model = i3d.I3D()
    clip = jax.ShapeDtypeStruct((1, 256, 96, 96, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), clip)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == parameters
    outputs = jax.eval_shape(model.apply, variables, clip)
    assert {name: y.shape[1:] for name, y in outputs.items()} == {
        "Mixed_3c": (128, 12, 12, 480), "Mixed_4f": (64, 6, 6, 832), "Mixed_5c": (32, 3, 3, 1024),
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "used"), [
    ("auto", "decomposed" if jax.default_backend() == "cpu" else "direct"), *[(name, name) for name in (
        "decomposed", "onednn", "direct")]])
def test_every_layer_gets_the_mode(asked, used, monkeypatch):
    """A mode that is taken for another: the numbers are the same, the time is not."""
    seen = set()
    for name in ("conv3d", "max_pool3d"):
        original = getattr(i3d, name)
        monkeypatch.setattr(i3d, name, lambda *args, original=original: (seen.add(args[-1]), original(*args))[1])
    clip = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.float32)
    jax.eval_shape(lambda x: i3d.I3D(conv_mode=asked).init(jax.random.key(0), x), clip)
    assert seen == {used}


def test_stops_after_the_deepest_end_point():
    """Catches work and parameters below an end point that nobody asked for."""
    clip = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.float32)
    model = i3d.I3D(end_points=("Mixed_3c", "MaxPool3d_2a_3x3"))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), clip)
    assert set(variables["params"]) == {"Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "Mixed_3b", "Mixed_3c"}
    assert set(jax.eval_shape(model.apply, variables, clip)) == {"Mixed_3c", "MaxPool3d_2a_3x3"}


def test_unknown_end_point_is_refused():
    """Catches a misspelt end point that passes in silence."""
    with pytest.raises(UserError, match="Mixed_3d"):
        i3d.I3D(end_points=("Mixed_3d",)).init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    with pytest.raises(UserError, match="the list is empty"):
        i3d.I3D(end_points=()).init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))


@pytest.mark.parametrize(("channels", "multiplier", "expected"),
                         [(64, 1, 64), (64, 0.25, 16), (24, 0.25, 8), (16, 0.1, 4)])  # fmt: skip
def test_scaled_channels(channels, multiplier, expected):
    """Catches rounding to zero or to a width that vector units dislike."""
    assert i3d.scaled_channels(channels, multiplier) == expected


def test_network_is_the_torch_network(parity):
    """Catches a branch wired wrongly, a swapped statistic, a wrong epsilon, in values and in the input's gradient."""
    torch = pytest.importorskip("torch")
    from tests.reference.i3d_torch import forward
    from tests.reference.torch_trees import tensors

    model, variables, x = small_model(end_points=("Mixed_3c", "Mixed_4f", "Mixed_5c"))
    xt = torch.tensor(x, requires_grad=True)
    theirs = forward(xt.permute(0, 4, 1, 2, 3), tensors(variables["params"]),
                     jax.tree.map(torch.tensor, variables["batch_stats"]))
    sum(theirs[name].square().mean() for name in model.end_points).backward()

    def loss(x):
        outputs = model.apply(variables, x)
        return sum(jnp.mean(jnp.square(y)) for y in outputs.values()), outputs

    gradient, ours = run_once(jax.grad(loss, has_aux=True), x)
    parity("gradient by the input", gradient, xt.grad)
    for name in model.end_points:
        parity("end points", ours[name], theirs[name].permute(0, 2, 3, 4, 1))


def test_frozen_modes():
    """Catches statistics that move, an affine that trains when frozen, or one that does not when it should."""
    for mode, affine_trains in (("frozen", False), ("frozen_stats", True)):
        model, variables, x = small_model(bn_mode=mode, end_points=("Conv3d_2c_3x3",))
        _, gradients, _, stats = loss_and_gradients(model, variables, x, train=True)
        jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            assert bool(np.any(leaf)) == (affine_trains or not i3d.is_batch_norm_path(path)), path


def test_train_mode_uses_and_records_batch_statistics():
    """Catches wrong moments (against NumPy), a wrong momentum, and running averages unused in evaluation."""
    model, variables, x = small_model(bn_mode="train", bn_momentum=0.9, end_points=("Conv3d_1a_7x7",))
    outputs, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    unit = variables["params"]["Conv3d_1a_7x7"]
    old, new = (v["batch_stats"]["Conv3d_1a_7x7"]["batch_norm"] for v in (variables, updated))
    y = np.asarray(conv3d.conv3d(jnp.asarray(x), unit["conv3d"]["kernel"], (2, 2, 2), "direct"), np.float64)
    mean, var = y.mean((0, 1, 2, 3)), y.var((0, 1, 2, 3))
    close(new["mean"], 0.9 * old["mean"] + 0.1 * mean)
    close(new["var"], 0.9 * old["var"] + 0.1 * var)
    affine = unit["batch_norm"]
    close(outputs["Conv3d_1a_7x7"], np.maximum((y - mean) / np.sqrt(var + 1e-3) * affine["scale"] + affine["bias"], 0))
    evaluated = model.apply(variables, x, train=False)["Conv3d_1a_7x7"]
    y = (y - old["mean"]) / np.sqrt(old["var"] + 1e-3) * affine["scale"] + affine["bias"]
    close(evaluated, np.maximum(y, 0))


def test_remat_changes_nothing_but_memory(bn_mode="train"):
    """Catches a parameter tree that depends on remat, or statistics updated twice by recomputation."""
    model, variables, x = small_model(bn_mode=bn_mode)
    again = small_model(bn_mode=bn_mode, remat=True)[0]
    shapes = jax.eval_shape(lambda: again.init(jax.random.key(0), x))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    plain, rematerialised = (loss_and_gradients(m, variables, x, True) for m in (model, again))
    jax.tree.map(lambda a, b: close(b, a, 1e-3), plain, rematerialised)


def test_bfloat16_keeps_float32_parameters():
    """Catches half-precision parameters or statistics, and results far from those of float32."""
    model, variables, x = small_model(end_points=("Conv3d_2c_3x3", "Mixed_3b"))
    half = small_model(dtype=jnp.bfloat16, end_points=model.end_points)[0]
    initial = jax.eval_shape(lambda: half.init(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}
    exact, rough = run_once(model.apply, variables, x), run_once(half.apply, variables, x)
    for name in exact:
        assert rough[name].dtype == jnp.bfloat16
        close(rough[name], exact[name], 0.05)


def test_is_batch_norm_path():
    """Catches an optimiser mask that misses a leaf or takes a kernel: counted on the real tree."""
    params = jax.eval_shape(lambda: i3d.I3D().init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3))))["params"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert sum(map(i3d.is_batch_norm_path, paths)) == 2 * 57  # scale and bias of 57 convolutions
    assert i3d.is_batch_norm_path(("backbone_rgb", "Mixed_3b", "batch_norm", "bias"))
    assert not i3d.is_batch_norm_path(("backbone_rgb", "Mixed_3b", "conv3d", "kernel"))


def test_logits_need_a_large_enough_clip():
    """Catches an empty average (NaN logits) on clips smaller than the head's window."""
    with pytest.raises(UserError, match="2x7x7"):
        jax.eval_shape(lambda: i3d.I3D(num_logits=5).init(jax.random.key(0), jnp.zeros((1, 16, 96, 96, 3))))
