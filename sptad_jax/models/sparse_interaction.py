"""Sparse interaction module (paper 3.1.3, Figure 3): every proposal convolves its own segment of interest."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sptad_jax.models.temporal_fpn import NORM_EPSILON

Array = jax.Array


class SparseInteraction(nn.Module):
    """Proposal features [B, N, D] and SoI features [B, N, K, D] -> segment features [B, N, D].

    A linear layer turns each proposal feature into two matrices, D x d_h and d_h x D; the SoI feature is multiplied by
    both in turn, each followed by layer norm and ReLU; the K x D result is flattened and projected to D (layer norm,
    ReLU). Where the paper is silent (norms, the projection) this is Sparse R-CNN's DynamicConv (head.py:258-303).
    """

    dynamic_dim: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, proposal_features: Array, soi_features: Array) -> Array:
        batch, num_proposals, hidden = proposal_features.shape
        soi_features = soi_features.astype(self.dtype)
        parameters = self._dense(2 * hidden * self.dynamic_dim, "generator")(proposal_features)
        first, second = jnp.split(parameters, 2, axis=-1)
        first = first.reshape(batch, num_proposals, hidden, self.dynamic_dim)
        second = second.reshape(batch, num_proposals, self.dynamic_dim, hidden)
        x = nn.relu(self._norm("norm_first")(jnp.einsum("bnkd,bndh->bnkh", soi_features, first)))
        x = nn.relu(self._norm("norm_second")(jnp.einsum("bnkh,bnhd->bnkd", x, second)))
        x = self._dense(hidden, "output")(x.reshape(batch, num_proposals, -1))
        return nn.relu(self._norm("norm_output")(x))

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name=name)
