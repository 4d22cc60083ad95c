"""Compiled programs kept on disk, so that a second start need not compile them again."""

import os
import pathlib

import jax

from sptad_jax.files import AnyPath
from sptad_jax.models.conv3d import has_onednn


def keep_programs(folder: AnyPath | None, dtype: str) -> None:
    """JAX reads and writes the programs of this process in `folder`; a program fits only machines like this one.

    Networks in float32 that are compiled afterwards do without oneDNN (see `fit_to_device`). Nothing happens where
    `folder` is None, where JAX_COMPILATION_CACHE_DIR names another, and where the network computes in bfloat16 by
    oneDNN: such programs cannot be kept (jax 0.12 warns).
    """
    by_onednn = dtype == "bfloat16" and has_onednn(dtype)
    if folder is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ and not by_onednn:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def user_folder() -> pathlib.Path | None:
    """sptad_jax in the user's folder for caches; None where it cannot be made or written."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(base) / "sptad_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
