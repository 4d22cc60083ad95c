"""SP-TAD: temporal action detection with sparse proposals (arXiv 2109.08847), in JAX and Flax.

`load` gives a detector for video files; importing this package alone loads neither JAX nor FFmpeg.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sptad_jax.errors import UserError

if TYPE_CHECKING:
    from sptad_jax.inference.detect import Detector

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load"]


def load(checkpoint: str | os.PathLike[str], *, overrides: str | Sequence[str] = ()) -> "Detector":
    """A trained detector, ready for `detector.detect("video.mp4")`.

    Args:
      checkpoint: work folder of a training (`train.py --workdir`), or an exported .safetensors file.
      overrides: options of inference in place of the training's, as ["inference.vote=true", "data.stride_test=32"];
        a single one may be a string.

    Raises UserError where it is missing or damaged, an option is none or belongs to the weights, or a package is not
    installed that reading videos needs.
    """
    try:
        from sptad_jax.inference.detect import load_detector
    except ModuleNotFoundError as error:
        raise UserError(f"detection needs the package '{error.name}'; install the extra [data].") from error
    return load_detector(os.fspath(checkpoint), overrides=[overrides] if isinstance(overrides, str) else overrides)
