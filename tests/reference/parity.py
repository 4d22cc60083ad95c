"""How far two trees of arrays differ, and the table of the largest differences that the parity tests saw."""

import datetime
import importlib.metadata
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from sptad_jax.files import write_text

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
SMALL = 1e-2  # an array of a tree whose entries are all below this share of the tree's largest is measured against that
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
HEADER = """# Parity with PyTorch and slow loops

The largest error that each parity test saw: the largest |found - expected| of an array, divided by the largest
|expected| of that array. In a tree of arrays, such as all gradients, an array whose entries are all below a hundredth
of the tree's largest is divided by that hundredth: some gradients are zero but for rounding, such as those of biases
before a norm. float64 tells a wrong formula from rounding; JAX computes in it under `jax_enable_x64`. float32
gradients of I3D are compared on clips beside which no ReLU or maximum decides otherwise: where one does, rounding moves
them by up to 5 %, those of torch's float32 against its own float64 as well.

Written by `pytest -n 0 --parity-table docs/parity.md` on {date}, on a CPU, with Python {python}, {versions}.

| Test | Function | Compared | dtype | Largest relative error | Tolerance |
|---|---|---|---|---|---|
"""

Errors = dict[tuple[str, str, str, str], float]  # test file, function, what is compared, dtype -> largest error


def largest_error(found: Any, expected: Any) -> tuple[str, float]:
    """dtype and largest relative error (as the header says) of two trees of one shape; `expected` may hold tensors.

    The dtype of both must be the same: an array computed in less precision than asked for is no match.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = [np.asarray(x) for x in jax.tree.leaves(found)]
    others = [np.asarray(x.detach() if hasattr(x, "detach") else x) for x in jax.tree.leaves(expected)]
    assert [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in others]
    (dtype,) = {str(x.dtype) for x in leaves}
    sizes = [float(np.abs(x).max(initial=0.0)) for x in others]
    differences = [float(np.abs(x - y).max(initial=0.0)) for x, y in zip(leaves, others)]
    floor = max(SMALL * max(sizes), np.finfo(dtype).tiny)
    return dtype, float(np.max([d / max(size, floor) for d, size in zip(differences, sizes)]))  # np.max keeps NaN


def write_table(path: str | pathlib.Path, errors: Errors) -> None:
    """Markdown, one row for each function, compared thing and dtype, in alphabetical order."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    text = HEADER.format(date=datetime.date.today(), python=platform.python_version(), versions=versions)
    for (file, function, what, dtype), error in sorted(errors.items()):
        text += f"| `{file}` | `{function}` | {what} | {dtype} | {error:.1e} | {TOLERANCE[dtype]:.0e} |\n"
    write_text(pathlib.Path(path), text)
