"""3-D convolution and pooling against PyTorch's operator and slow NumPy loops."""

import pathlib
import platform

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.config import ModelConfig
from sptad_jax.models import conv3d
from sptad_jax.models.max_pool3d import max_pool3d
from tests.reference.arrays import normal
from tests.reference.parameters import run_once

# every (kernel, stride) pair of the network, then an even kernel and one stride that differs from axis to axis
KERNELS = [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 1, 1), (1, 1, 1)), ((2, 4, 3), (1, 1, 1)),
           ((3, 3, 5), (2, 1, 2))]
POOLS = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]
# jaxlib 0.10 takes the option without effect; other processors have no oneDNN
ONEDNN_EXPECTED = platform.machine() == "x86_64" and jax.__version_info__ >= (0, 11) and jax.default_backend() == "cpu"
SIZES = [(8, 10, 12), (9, 7, 5), (1, 2, 3), (5, 2, 2), (6, 1, 3)]  # the last two: maps that become columns


def value_and_vjp(function, inputs, cotangent):
    """Both from one compiled program: operator by operator they take over twice as long to compile."""
    def both(inputs, cotangent):
        value, vjp = jax.vjp(function, *inputs)
        return value, vjp(cotangent)

    return run_once(both, inputs, jnp.asarray(cotangent))


@pytest.mark.parametrize(("kernel", "strides"), KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "features"), [
    ("direct", 4), *((mode, features) for mode in ("decomposed", "onednn") for features in (4, conv3d.MIN_FEATURES))])
def test_conv3d_is_torch_conv3d(kernel, strides, size, mode, features, parity):
    """Catches wrong SAME padding, stride, tap order, or a wrong gradient of a form for CPUs, of which there are two
    for the kernel."""
    torch = pytest.importorskip("torch")
    from tests.reference.i3d_torch import pad_same

    x, w = normal(0, (2, *size, 3)), normal(1, (*kernel, 3, features))
    xt, wt = (torch.tensor(a, requires_grad=True) for a in (x, w))
    y = torch.nn.functional.conv3d(pad_same(xt.permute(0, 4, 1, 2, 3), kernel, strides), wt.permute(4, 3, 0, 1, 2),
                                   stride=strides).permute(0, 2, 3, 4, 1)  # fmt: skip
    cotangent = normal(2, tuple(y.shape))
    y.backward(torch.tensor(cotangent))
    ours, gradients = value_and_vjp(lambda x, w: conv3d.conv3d(x, w, strides, mode), (x, w), cotangent)
    parity("output", ours, y)
    parity("gradients by input and kernel", gradients, (xt.grad, wt.grad))


@pytest.mark.parametrize(("window", "strides"), POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_max_pool_is_the_obvious_loop(window, strides, size):
    """Catches padding that wins over negative values, a lost trailing sample, a wrong gradient, or one that goes to
    another of equal samples than the first, or to several."""
    x = normal(3, (2, *size, 2))  # negative values too
    x[1] = np.floor(x[1])  # many are equal
    lengths = [-(-n // s) for n, s in zip(size, strides)]
    lead = [max((m - 1) * s + k - n, 0) // 2 for n, m, k, s in zip(size, lengths, window, strides)]
    expected = np.empty((2, *lengths, 2), np.float32)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*lengths):
        cut = tuple(slice(max(i * s - p, 0), i * s - p + k) for i, s, p, k in zip(index, strides, lead, window))
        for b, c in np.ndindex(2, 2):
            block = x[(b, *cut, c)]
            where = np.unravel_index(block.argmax(), block.shape)
            expected[(b, *index, c)] = block[where]
            gradient[(b, *(w + s.start for w, s in zip(where, cut)), c)] += 1 + c
    for mode in ("direct", "decomposed"):
        pooled, (found,) = value_and_vjp(lambda x, mode=mode: max_pool3d(x, window, strides, mode), (x,),
                                         np.broadcast_to(np.float32([1, 2]), expected.shape))
        np.testing.assert_array_equal(pooled, expected)
        np.testing.assert_allclose(found, gradient, rtol=1e-6)


def test_order_of_least_memory():
    """An option that this jaxlib takes without effect: of eight independent sums, all arrays are held at once."""
    def sums(x):
        return [jnp.sum(jnp.flip(jnp.cos(x * i)).cumsum()) for i in range(1, 9)]

    x = jnp.ones(1 << 18)
    lowered = jax.jit(sums).lower(x)
    usual, least = (lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes
                    for options in (None, conv3d.fit_to_device(ModelConfig())[1]))
    assert least < usual / 2


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="XLA of jax 0.10 orders them as it likes")
@pytest.mark.parametrize(("mode", "size", "depth", "maps"), [
    ("decomposed", 1, 6, 7.5), ("onednn", 1, 6, 7.5),
    pytest.param("onednn", 3, 12, 19.5, marks=pytest.mark.skipif(not ONEDNN_EXPECTED, reason="no oneDNN"))])
def test_gradients_by_kernels_do_not_wait(mode, size, depth, maps):
    """Gradients by kernels that XLA leaves to the end, for which it keeps maps that recomputation was to save: without
    the barrier 9 and 23 maps are held at once."""
    shape = (1, 16, 32, 32, 32)

    def loss(kernels, x):
        for kernel in kernels:
            x = jax.checkpoint(lambda x, kernel: nn.relu(conv3d.conv3d(x, kernel, (1, 1, 1), mode)))(x, kernel)
        return x.sum()

    options = conv3d.fit_to_device(model_config(mode))[1]
    kernels = [jnp.ones((size, size, size, 32, 32))] * depth
    lowered = jax.jit(jax.grad(loss), compiler_options=options).lower(kernels, jnp.ones(shape))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < maps * 4 * np.prod(shape)


@pytest.fixture
def cache_folder(tmp_path):
    """Has JAX keep programs on disk, as the commands do."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def model_config(mode="auto", dtype="float32"):
    return ModelConfig(conv_mode=mode, compute_dtype=dtype)


@pytest.mark.parametrize(("avx512", "units"), [(True, True), (True, False), (False, False)])
def test_fit_to_device(monkeypatch, avx512, units):
    """A mode without the options that make it fast, which nothing but a clock shows, or options that this jaxlib
    refuses; oneDNN where there is none, where 3-D convolutions take ten times as long, or for bfloat16 on a CPU without
    units for it, where a step takes fifteen times as long; a mode that the user named and does not get; another field
    that changes."""
    monkeypatch.setattr(conv3d, "has_avx512", lambda: avx512)
    monkeypatch.setattr(conv3d, "has_bfloat16", lambda: units)
    for there in (True, False):
        monkeypatch.setattr(conv3d, "has_onednn", lambda dtype, there=there: there and (dtype == "float32" or units))
        for dtype in ("float32", "bfloat16"):
            fitted, options = conv3d.fit_to_device(model_config(dtype=dtype))
            onednn = units if dtype == "bfloat16" else there
            assert fitted == model_config("onednn" if there and onednn else "decomposed", dtype)
            assert ("xla_cpu_experimental_onednn_custom_call" in options) is onednn
            assert ("ynn_fusion" in str(options)) is not (onednn and avx512)
            jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
        for mode in ("decomposed", "direct", "onednn"):
            fitted, options = conv3d.fit_to_device(model_config(mode))
            assert fitted == model_config(mode) and ("onednn" in str(options)) is (mode == "onednn")
            assert ("ynn_fusion" in str(options)) is (mode == "decomposed" or (mode == "onednn" and not avx512))



def test_avx512_as_the_kernel_says():
    """Another NumPy with other names for it, and steps of 1.1 to 1.4 or 1.6 times the time."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        pytest.skip("no /proc/cpuinfo")
    assert conv3d.has_avx512() is ("avx512f" in path.read_text().split())


def test_programs_that_are_kept_do_without_onednn(monkeypatch, cache_folder):
    """A network that is compiled anew at every start of a command, as JAX cannot keep it; bfloat16 without oneDNN."""
    monkeypatch.setattr(conv3d, "has_onednn", lambda dtype: True)
    monkeypatch.setattr(conv3d, "has_bfloat16", lambda: True)
    assert conv3d.fit_to_device(model_config())[0].conv_mode == "decomposed"
    assert conv3d.fit_to_device(model_config(dtype="bfloat16"))[0].conv_mode == "onednn"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_groups_of_pictures(monkeypatch, dtype):
    """A sum over groups that oneDNN makes one call of, which aborts the process beyond 32 sums (four windows of 256
    frames at the paper's size are 41 groups); groups that are lost or counted twice, or rounded one by one in bfloat16;
    against XLA's own gradient."""
    monkeypatch.setattr(conv3d, "GROUP_SIZE", 1)  # a group a picture
    x, kernel = (jnp.asarray(a, dtype) for a in (normal(0, (1, 35, 12, 12, 64)), normal(1, (3, 3, 3, 64, 64))))

    def gradient(x, kernel, mode):
        return jax.grad(lambda kernel: conv3d.conv3d(x, kernel, (1, 1, 1), mode).astype(jnp.float32).sum())(kernel)

    fitted, options = conv3d.fit_to_device(model_config(dtype=dtype))
    mode = "onednn" if dtype == "float32" else fitted.conv_mode
    options = conv3d.fit_to_device(model_config(mode, dtype))[1]
    found = jax.jit(gradient, static_argnums=2, compiler_options=options)(x, kernel, mode)
    exact = jax.jit(gradient, static_argnums=2)(x.astype(jnp.float32), kernel.astype(jnp.float32), "direct")
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(np.float32(found), exact, atol=tolerance * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_onednn_makes_every_convolution(dtype):
    """A form of convolution, forward or in a gradient by the input, that XLA computes itself; a probe that always says
    no, or yes where jaxlib has no oneDNN or the CPU no units."""
    shape = (2, 8, 12, 12, 8)
    kernel = jnp.asarray(normal(1, (3, 3, 3, 8, 8)), dtype)
    _, options = conv3d.fit_to_device(model_config("onednn", dtype))

    def loss(x, kernel):
        return jnp.square(conv3d.conv3d(x, kernel, (1, 1, 1), "onednn").astype(jnp.float32)).sum()

    program = jax.jit(jax.grad(loss), compiler_options=options).lower(jnp.zeros(shape, dtype), kernel).compile()
    assert (program.as_text().count('"__onednn$convolution"') == 2) is ONEDNN_EXPECTED
    assert conv3d.has_onednn(dtype) is (ONEDNN_EXPECTED and (dtype == "float32" or conv3d.has_bfloat16()))
    x = jnp.asarray(normal(0, shape), dtype)
    exact = jax.grad(lambda x: jnp.square(conv3d.conv3d(x, kernel.astype(jnp.float32), (1, 1, 1), "direct")).sum())(
        x.astype(jnp.float32))
    np.testing.assert_allclose(np.float32(program(x, kernel)), exact, atol=(0.03 if dtype == "bfloat16" else 1e-5)
                               * float(jnp.abs(exact).max()))
