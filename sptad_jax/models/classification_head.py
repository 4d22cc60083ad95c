"""Action classification head (paper 3.1.4): which classes happen anywhere in the clip."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sptad_jax.config import ModelConfig
from sptad_jax.precision import wide

Array = jax.Array


class ClassificationHead(nn.Module):
    """Backbone end points [B, T_l, H_l, W_l, C_l] and frame_mask [B, F] -> clip logits [B, A] float32.

    Space-time means of all levels, concatenated, and one linear layer; the sigmoid belongs to the loss and to
    inference. With `clip_pooling="masked"`, padded frames do not count (see `step_mask`); a frame_mask of None means
    that all frames are real.
    """

    config: ModelConfig
    num_classes: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, features: Sequence[Array], frame_mask: Array | None = None) -> Array:
        if self.config.clip_pooling == "plain":
            frame_mask = None
        pooled = jnp.concatenate([masked_mean(x, frame_mask) for x in features], axis=-1)
        logits = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="logits"
        )(pooled)
        return logits.astype(wide(logits))


def masked_mean(x: Array, frame_mask: Array | None) -> Array:
    """Mean over space and real steps. [B, T, H, W, C], bool [B, F] -> [B, C] float32; 0 where no step is real."""
    per_step = x.mean(axis=(2, 3), dtype=wide(x))
    if frame_mask is None:
        return per_step.mean(axis=1)
    weights = step_mask(frame_mask, x.shape[1]).astype(per_step.dtype)[..., None]
    return (weights * per_step).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)


def step_mask(frame_mask: Array, num_steps: int) -> Array:
    """Which steps of a level are real: those whose first frame is. bool [B, F] -> bool [B, T].

    Padding follows the real frames, so the first frame is real exactly when any frame of the step is.
    """
    stride = -(-frame_mask.shape[1] // num_steps)
    return frame_mask[:, ::stride][:, :num_steps]
