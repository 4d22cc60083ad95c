"""3-D convolution and pooling against PyTorch's operator and slow NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.models import conv3d
from tests.reference.arrays import normal

# every (kernel, stride) pair of the network, then an even kernel and one stride that differs from axis to axis
KERNELS = [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 1, 1), (1, 1, 1)), ((2, 4, 3), (1, 1, 1)),
           ((3, 3, 5), (2, 1, 2))]
POOLS = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]
SIZES = [(8, 10, 12), (9, 7, 5), (1, 2, 3), (5, 2, 2), (6, 1, 3)]  # the last two: maps that become columns


@pytest.mark.parametrize(("kernel", "strides"), KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "features"), [("direct", 4), ("decomposed", 4), ("decomposed", conv3d.MIN_FEATURES)])
def test_conv3d_is_torch_conv3d(kernel, strides, size, mode, features, parity):
    """Catches wrong SAME padding, stride, tap order, or a wrong gradient of the decomposition, of which there are two
    for the kernel."""
    torch = pytest.importorskip("torch")
    from tests.reference.i3d_torch import pad_same

    x, w = normal(0, (2, *size, 3)), normal(1, (*kernel, 3, features))
    xt, wt = (torch.tensor(a, requires_grad=True) for a in (x, w))
    y = torch.nn.functional.conv3d(pad_same(xt.permute(0, 4, 1, 2, 3), kernel, strides), wt.permute(4, 3, 0, 1, 2),
                                   stride=strides).permute(0, 2, 3, 4, 1)  # fmt: skip
    cotangent = normal(2, tuple(y.shape))
    y.backward(torch.tensor(cotangent))
    ours, vjp = jax.vjp(lambda x, w: conv3d.conv3d(x, w, strides, mode), x, w)
    dx, dw = vjp(jnp.asarray(cotangent))
    parity("output", ours, y)
    parity("gradients by input and kernel", (dx, dw), (xt.grad, wt.grad))


@pytest.mark.parametrize(("window", "strides"), POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_max_pool_is_the_obvious_loop(window, strides, size):
    """Catches padding that wins over negative values, a lost trailing sample or a wrong gradient."""
    x = normal(3, (1, *size, 2))  # negative values too; all distinct, so that the gradient is unique
    lengths = [-(-n // s) for n, s in zip(size, strides)]
    lead = [max((m - 1) * s + k - n, 0) // 2 for n, m, k, s in zip(size, lengths, window, strides)]
    expected = np.empty((1, *lengths, 2), np.float32)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*lengths):
        cut = tuple(slice(max(i * s - p, 0), i * s - p + k) for i, s, p, k in zip(index, strides, lead, window))
        for c in range(2):
            block = x[(0, *cut, c)]
            where = np.unravel_index(block.argmax(), block.shape)
            expected[(0, *index, c)] = block[where]
            gradient[(0, *(w + s.start for w, s in zip(where, cut)), c)] += 1 + c
    for mode in ("direct", "decomposed"):
        pooled, vjp = jax.vjp(lambda x, mode=mode: conv3d.max_pool3d(x, window, strides, mode), x)
        np.testing.assert_array_equal(pooled, expected)
        np.testing.assert_allclose(vjp(jnp.ones_like(pooled) * jnp.asarray([1.0, 2.0]))[0], gradient, rtol=1e-6)


def test_order_of_least_memory():
    """An option that this jaxlib takes without effect: of eight independent sums, all arrays are held at once."""
    def sums(x):
        return [jnp.sum(jnp.flip(jnp.cos(x * i)).cumsum()) for i in range(1, 9)]

    x = jnp.ones(1 << 18)
    lowered = jax.jit(sums).lower(x)
    usual, least = (lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes
                    for options in (None, conv3d.compiler_options("float32")))
    assert least < usual / 2


def test_compiler_options():
    """A dtype by its config name that is not recognised leaves bfloat16 ten times slower, without any other sign; the
    option must not reach float32 programs, nor be one that this jaxlib refuses."""
    assert not any("onednn" in name for name in conv3d.compiler_options("float32"))
    options = conv3d.compiler_options("bfloat16")
    assert any("onednn" in name for name in options) and options == conv3d.compiler_options(jnp.bfloat16)
    x = jnp.asarray(normal(0, (2, 4, 6, 6, 3)), jnp.bfloat16)
    kernel = jnp.asarray(normal(1, (3, 3, 3, 3, 8)), jnp.bfloat16)
    fast = jax.jit(conv3d.conv3d, static_argnums=(2, 3), compiler_options=options)(x, kernel, (1, 1, 1), "decomposed")
    exact = conv3d.conv3d(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1, 1), "direct")
    np.testing.assert_allclose(fast.astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max()))
