"""Compiled programs that outlive a process."""

import os

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sptad_jax import program_cache
from sptad_jax.cli import main
from sptad_jax.models.conv3d import has_onednn
from sptad_jax.program_cache import keep_programs
from tests.reference.detector_run import make_run

user_folder = program_cache.user_folder  # the one that conftest.py puts out of use


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


def test_programs_are_written(tmp_path):
    """A cache that is named too late, or in a form that JAX does not take."""
    keep_programs(tmp_path, "float32")
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert list(tmp_path.iterdir())


def test_looking_for_onednn_is_silent(tmp_path):
    """A start that warns, since oneDNN is looked for by a program that JAX cannot keep."""
    keep_programs(tmp_path, "float32")
    assert isinstance(has_onednn.__wrapped__("float32"), bool)


def test_users_own_folder_and_onednn_come_first(tmp_path, monkeypatch):
    """JAX_COMPILATION_CACHE_DIR overridden; programs kept that jax cannot write."""
    monkeypatch.setattr(program_cache, "has_onednn", lambda dtype: True)
    keep_programs(None, "float32")
    keep_programs(tmp_path, "bfloat16")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    keep_programs(tmp_path / "other", "float32")
    assert jax.config.jax_compilation_cache_dir is None


def test_folder_of_the_user(tmp_path, monkeypatch):
    """A home that cannot be written, or none at all, which ends the command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_folder() == tmp_path / "cache" / "sptad_jax" and user_folder().is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert user_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / ".cache" / "sptad_jax"
    if os.getuid():  # root may write anywhere
        (tmp_path / ".cache" / "sptad_jax").chmod(0o500)
        assert user_folder() is None


def test_detect_keeps_its_network(tmp_path, monkeypatch):
    """A command that compiles the same network at every start: no folder named, or named only after the network took
    the form of oneDNN, which JAX cannot keep and warns of."""
    pytest.importorskip("av")
    from sptad_jax.data.video import write_video

    run, programs, video = make_run(tmp_path), tmp_path / "programs", tmp_path / "a.mp4"
    monkeypatch.setattr(program_cache, "user_folder", lambda: programs)
    write_video(video, np.zeros((20, 24, 24, 3), np.uint8), 10)
    assert main(["detect", str(video), "--checkpoint", str(run)]) == 0
    assert list(programs.glob("jit_forward-*"))
