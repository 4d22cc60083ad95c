"""Compiled programs that outlive a process."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sptad_jax import program_cache
from sptad_jax.cli import main
from sptad_jax.models.conv3d import has_onednn
from sptad_jax.program_cache import keep_programs

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


def test_detect_keeps_its_programs(tmp_path, monkeypatch):
    """A command that compiles the same network anew for every video that it is given."""
    monkeypatch.setattr(program_cache, "user_folder", lambda: tmp_path)
    assert main(["detect", str(tmp_path / "absent.mp4")]) == 2  # with the detector that ships with the package
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
