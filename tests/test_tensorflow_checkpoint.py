"""TensorFlow's checkpoints without TensorFlow: one that it wrote, damaged ones, and checksums."""

import base64
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data_prep import convert_i3d
from data_prep.tensorflow_checkpoint import crc32c, read_checkpoint
from sptad_jax.errors import UserError
from tests.reference.arrays import assert_same_bits

# Five variables that TensorFlow 2.21 saved (Saver, V2): .index and .data-00000-of-00001, compressed
TENSORFLOW_FILES = {
    "model.ckpt.index":
        "eNpjYGDjYJRi4mBkcOQPcnfSz8xLTi0oyczPi880TtH3zaxITYk3TdJ3KkrMS86IN9J3zs8rM06JN0iMN64w1k9KLAGK5uUX5eonpZYkcjAKsQgx"
        "cTBr8JgeqYhbbMSpmAxUHg80qBwoJQKUYkTCTCClCjwaEqZXJlazM7AKpuYWlFQChdmEGIBSLAoqpjdeNS1i4OZNz8lPSsyJLy5JLeDgFGJQUNHg"
        "MN19fb4gA4tgRmJOGocw2FomBR0NFtNl1YJWDEDACCJOZCeJwDkHPi3cwMDInMlwlxEuNjXS0/8RI8d7Rn4GgiD8d0O3Sqn7bQCi70Ci",
    "model.ckpt.data-00000-of-00001": "eNo7xcQAAg3PNibWMzA47AeygbhhHwNE2A5I2LMzIAAAAZoHxA==",
}  # fmt: skip
MIXED_5B = "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3"
TENSORFLOW_VALUES = {
    f"{MIXED_5B}/conv_3d/w": (np.arange(-3, 3).reshape(1, 1, 1, 2, 3) / 4).astype(np.float32),
    f"{MIXED_5B}/batch_norm/beta": np.array([1e-42, -0.0, 3e38], np.float32),
    "global_step": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float64),
}  # and "half", of a kind that is passed over


@pytest.fixture(scope="module")
def tensorflow_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    for name, text in TENSORFLOW_FILES.items():
        (folder / name).write_bytes(zlib.decompress(base64.b64decode(text)))
    return folder


def test_checkpoint_that_tensorflow_wrote(tensorflow_files):
    """A name, shape, kind or value that is read otherwise than TensorFlow wrote it."""
    assert_same_bits(read_checkpoint(tensorflow_files / "model.ckpt"), TENSORFLOW_VALUES)


def test_crc32c():
    """A checksum that is wrong for long inputs, which are computed in lanes: against one byte after the other."""
    assert crc32c(b"123456789") == 0xE3069283  # the check value that every CRC-32C has
    for size in (4, 1023, 1024, 1025, 5000, 2048 * 3):
        data = np.random.default_rng(size).bytes(size)
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        assert crc32c(data) == register ^ 0xFFFFFFFF, size


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(data=st.data())
def test_damaged_checkpoints(tensorflow_files, tmp_path_factory, data):
    """A flipped or missing byte that gives a traceback, or other numbers in silence."""
    folder = tmp_path_factory.mktemp("damaged")
    contents = {name: bytearray((tensorflow_files / name).read_bytes()) for name in TENSORFLOW_FILES}
    damaged = contents[data.draw(st.sampled_from(sorted(contents)))]
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[at] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[at:]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    try:
        found = read_checkpoint(folder / "model.ckpt")
    except UserError as error:
        assert "model.ckpt" in str(error)
    else:  # the byte belongs to a variable that is passed over, or to padding
        assert_same_bits(found, TENSORFLOW_VALUES)


def test_missing_half_of_a_checkpoint(tensorflow_files, tmp_path, capsys):
    """A traceback where the .data file was not fetched, or a message that does not say what belongs together."""
    (tmp_path / "model.ckpt.index").write_bytes((tensorflow_files / "model.ckpt.index").read_bytes())
    for name, missing in (("model.ckpt", "model.ckpt.data-00000-of-00001"), ("model.ckpt.index", "data-00000-of-00001"),
                          ("absent", "absent.index")):  # fmt: skip
        assert convert_i3d.main([str(tmp_path / name), str(tmp_path / "w.npz")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and missing in error
