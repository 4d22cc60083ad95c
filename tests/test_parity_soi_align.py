"""SoI Align and its gradient against RoIAlign's rules, read with torch's grid_sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptad_jax.models import soi_align
from tests.reference.parameters import run_once

LENGTHS, BINS, CHANNELS = (16, 8, 4, 1), 4, 3
# in steps of the level of 16: inside, the whole, beyond either end, around it, far outside, shorter than a step, empty;
# then bounds at which a sample of the legacy rule with two samples a bin lies exactly at -1 and exactly at T
BOUNDS = [(2.3, 9.1), (0.0, 16.0), (-3.2, 4.7), (11.9, 20.3), (-5.1, 24.8), (-30.0, -20.0), (25.0, 40.0), (7.2, 7.6),
          (5.3, 5.3), (-1.125, -0.125), (15.125, 16.125)]  # fmt: skip


@pytest.mark.parametrize("convention", ["aligned", "legacy"])
@pytest.mark.parametrize("ratio", [1, 2, 3, 0])
def test_equals_roi_align(convention, ratio, precision, parity):
    """A missing half step, a minimum length in the wrong rule, a count of samples, a clamp at -1 or T, a weight of two
    neighbours, a wrong base of a level in the joined sequence; in values and in the gradient by the features."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_soi_align import roi_align
    from tests.reference.torch_trees import cast, gradients, tensors

    rng = np.random.default_rng(0)
    levels = cast([rng.normal(size=(1, t, CHANNELS)) for t in LENGTHS], precision)
    segments_se = cast(np.array(BOUNDS * len(LENGTHS))[None] / LENGTHS[0], precision)
    level = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), len(BOUNDS))[None]
    weight = cast(rng.normal(size=(1, level.size, BINS, CHANNELS)), precision)

    def read(levels):
        soi, vjp = jax.vjp(lambda x: soi_align.soi_align(x, segments_se, level, BINS, convention, ratio, 8), levels)
        return soi, vjp(jnp.asarray(weight))[0]

    features = tensors(levels)
    rows = []
    for (start, end), chosen in zip(torch.tensor(segments_se[0]), level[0], strict=True):
        steps = LENGTHS[chosen]
        rows.append(roi_align(features[chosen][0], start * steps, end * steps, BINS, convention == "aligned", ratio))
    theirs = torch.stack(rows)[None]
    theirs.backward(torch.tensor(weight))
    ours, by_features = run_once(read, levels)
    parity("output", ours, theirs)
    parity("gradient by the features", by_features, gradients(features))
