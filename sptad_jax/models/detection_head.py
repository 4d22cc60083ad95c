"""Action detection head (paper 3.1.3): learnable proposals, refined by a stack of stages."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sptad_jax import segments
from sptad_jax.config import ModelConfig
from sptad_jax.models.soi_align import read_segments
from sptad_jax.models.sparse_interaction import SparseInteraction
from sptad_jax.models.temporal_fpn import NORM_EPSILON
from sptad_jax.precision import wide

Array = jax.Array
DELTA_WEIGHTS = (2.0, 1.0)  # divide the regressed (centre, log width): Sparse R-CNN head.py:26
MAX_LOG_WIDTH = math.log(100_000 / 16)  # 8.74: a stage widens a segment 6250 times at most (head.py:120)
MIN_WIDTH = 1e-4  # of an initial segment, share of the window: a learned width must not become 0
INVERSE_SIGMOID_MARGIN = 1e-3  # distance kept from 0 and 1, where the inverse sigmoid has no finite value
xavier = nn.initializers.xavier_uniform()


class DetectionHead(nn.Module):
    """Pyramid levels [B, T_l, D] -> class logits [S, B, N, A] and segments_se [S, B, N, 2], float32; intermediates.

    Every stage starts from the segments and the features of the one before; the first from learnable ones. Segments
    are shares of the window and may leave it unless `clip_segments`. No gradient passes from stage to stage through
    the segments unless `detach_segments` is off; through the features it always does (Sparse R-CNN head.py:101-109).
    With dropout and `train`, `apply` needs the random key "dropout".
    """

    config: ModelConfig
    num_classes: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, levels: Sequence[Array], *, train: bool) -> tuple[Array, Array, dict[str, Array]]:
        config, batch = self.config, levels[0].shape[0]
        shape = (config.num_proposals, config.hidden_dim)
        initial_cw = self.param("proposal_segments", initial_segments, config.num_proposals, config.proposal_init)
        features = self.param("proposal_features", nn.initializers.normal(1.0), shape)
        segments_se = to_valid_segments(jax.lax.stop_gradient(initial_cw) if config.detach_proposals else initial_cw)
        segments_se = jnp.broadcast_to(segments_se, (batch, *segments_se.shape))
        features = jnp.broadcast_to(features, (batch, *shape)).astype(self.dtype)

        out = {"proposal_segments_se": segments_se, "proposal_features": features}
        logits, refined = [], []
        stage = None
        for index in range(config.num_stages):
            if stage is None or not config.share_stages:
                stage = Stage(config, self.num_classes, self.dtype, name=f"stage_{index}")
            stage_logits, segments_se, features, stage_out = stage(features, segments_se, levels, train=train)
            logits.append(stage_logits)
            refined.append(segments_se)
            out.update({f"stage_{index}/{name}": value for name, value in stage_out.items()})
            if config.detach_segments:
                segments_se = jax.lax.stop_gradient(segments_se)
        return jnp.stack(logits), jnp.stack(refined), out


class Stage(nn.Module):
    """One head of the stack: self-attention, sparse interaction, feed-forward network, two branches.

    Each of the first three is followed by residual sum and layer norm (Sparse R-CNN head.py:186-201).
    Takes features [B, N, D], segments_se [B, N, 2] and the levels; returns logits [B, N, A] float32, refined
    segments_se, the features for the next stage, and intermediates.
    """

    config: ModelConfig
    num_classes: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Array, segments_se: Array, levels: Sequence[Array], *, train: bool
    ) -> tuple[Array, Array, Array, dict[str, Array]]:
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=not train)
        with jax.named_scope("soi_align"):
            soi, out = read_segments(
                levels, segments_se, num_bins=config.soi_bins, convention=config.soi_align,
                sampling_ratio=config.sampling_ratio, level_rule=config.level_rule, eta=config.eta,
            )
        with jax.named_scope("self_attention"):
            features = self._norm("norm_attention")(features + drop(self._attend(features, train)))
        out["attended"] = features
        with jax.named_scope("sparse_interaction"):
            segment_features = SparseInteraction(config.dynamic_dim, self.dtype, name="interaction")(features, soi)
            features = self._norm("norm_interaction")(features + drop(segment_features))
        out["interacted"] = features
        with jax.named_scope("feed_forward"):
            hidden = drop(nn.relu(self._dense(config.ffn_dim, "ffn_hidden")(features)))
            final = self._norm("norm_ffn")(features + drop(self._dense(config.hidden_dim, "ffn_output")(hidden)))
        out["segment_features"] = final
        with jax.named_scope("branches"):
            logits, deltas = self._branches(final)
            refined_se = refine(segments_se, deltas, config.delta)
            if config.clip_segments:
                refined_se = jnp.clip(refined_se, 0.0, 1.0)
        out |= {"class_logits": logits, "deltas": deltas, "segments_se": refined_se}
        return logits, refined_se, final if config.stage_features == "post_ffn" else features, out

    def _attend(self, x: Array, train: bool) -> Array:
        """Multi-head self-attention among the proposals of one window, no position code, softmax in float32."""
        heads, hidden = self.config.num_heads, self.config.hidden_dim
        # PyTorch draws query, key and value as one [3D, D] matrix: xavier's bound is sqrt(6 / 4D), hence scale 0.5
        joint = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        query, key, value = (
            nn.DenseGeneral((heads, hidden // heads), dtype=self.dtype, kernel_init=joint, name=name)(x)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bnhc,bmhc->bhnm", query, key, preferred_element_type=wide(query))
        weights = nn.softmax(scores / math.sqrt(hidden // heads), axis=-1).astype(self.dtype)
        weights = nn.Dropout(self.config.dropout, deterministic=not train)(weights)
        mixed = jnp.einsum("bhnm,bmhc->bnhc", weights, value)
        return nn.DenseGeneral(
            hidden, axis=(-2, -1), dtype=self.dtype, kernel_init=xavier, name="attention_output"
        )(mixed)

    def _branches(self, x: Array) -> tuple[Array, Array]:
        """Class logits [B, N, A] and deltas [B, N, 2], float32.

        tower "paper": one linear layer, and linear-ReLU-linear-ReLU-linear; "sparse_rcnn": one and three hidden layers
        with layer norm and without bias before the last linear layer (Sparse R-CNN head.py:141-166).
        """
        config = self.config
        class_x = delta_x = x
        if config.tower == "sparse_rcnn":
            class_x = self._hidden(x, "class_hidden_0")
        for index in range(3 if config.tower == "sparse_rcnn" else 2):
            delta_x = self._hidden(delta_x, f"delta_hidden_{index}")
        prior_bias = nn.initializers.constant(-math.log((1.0 - config.prior_prob) / config.prior_prob))
        logits = nn.Dense(self.num_classes, kernel_init=xavier, bias_init=prior_bias, name="class_logits")(
            class_x.astype(wide(class_x)))
        # inverse sigmoid starts from the identity, as in Deformable DETR; Sparse R-CNN draws this layer as the others
        delta_init = nn.initializers.zeros if config.delta == "inverse_sigmoid" else xavier
        deltas = nn.Dense(2, kernel_init=delta_init, name="deltas")(delta_x.astype(wide(delta_x)))
        return logits, deltas

    def _hidden(self, x: Array, name: str) -> Array:
        if self.config.tower == "paper":
            return nn.relu(self._dense(self.config.hidden_dim, name)(x))
        return nn.relu(self._norm(f"{name}_norm")(self._dense(self.config.hidden_dim, name, use_bias=False)(x)))

    def _dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(features, use_bias=use_bias, dtype=self.dtype, kernel_init=xavier, name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=self.dtype, name=name)


def refine(segments_se: Array, deltas: Array, parametrisation: str) -> Array:
    """Moves segments by the regressed deltas. float32 [B, N, 2] (start, end), [B, N, 2] -> [B, N, 2] (start, end).

    log_width: c' = c + (d_c / 2) w, w' = w exp(d_w), d_w at most 8.74 (Sparse R-CNN head.py:217-255).
    inverse_sigmoid: (c, w)' = sigmoid(d + logit(c, w)), inside (0, 1), after (c, w) were kept 0.001 away from 0 and 1
    (Deformable DETR deformable_detr.py:86-104). Deltas of 0 change nothing.
    """
    segments_cw = segments.se_to_cw(segments_se.astype(wide(segments_se)))
    if parametrisation == "inverse_sigmoid":
        share = jnp.clip(segments_cw, INVERSE_SIGMOID_MARGIN, 1.0 - INVERSE_SIGMOID_MARGIN)
        return segments.cw_to_se(nn.sigmoid(deltas + jnp.log(share) - jnp.log1p(-share)))
    centre, width = segments_cw[..., 0], segments_cw[..., 1]
    centre = centre + deltas[..., 0] / DELTA_WEIGHTS[0] * width
    width = width * jnp.exp(jnp.minimum(deltas[..., 1] / DELTA_WEIGHTS[1], MAX_LOG_WIDTH))
    return segments.cw_to_se(jnp.stack([centre, width], axis=-1))


def to_valid_segments(segments_cw: Array) -> Array:
    """Learned (centre, width) [N, 2] -> (start, end) with start < end, whatever the optimiser did to the width."""
    width = jnp.maximum(jnp.abs(segments_cw[:, 1]), MIN_WIDTH)
    return segments.cw_to_se(jnp.stack([segments_cw[:, 0], width], axis=-1))


def initial_segments(key: Array, num_proposals: int, kind: str) -> Array:
    """The learnable segments at the start: float32 [N, 2] (centre, width) as share of the window.

    image: the whole window (0.5, 1); centre: (0.5, 0.1); random: both uniform in [0, 1); grid: the window, its halves,
    its quarters and so on, the last row evenly spread if N cuts it short (the choices of Sparse R-CNN's ablation).
    """
    if kind == "random":
        return jax.random.uniform(key, (num_proposals, 2))
    if kind == "grid":
        rows: list[Array] = []
        remaining = num_proposals
        while remaining > 0:
            scale = 2 ** len(rows)
            count = min(scale, remaining)
            centre = (jnp.arange(count) + 0.5) / count
            rows.append(jnp.stack([centre, jnp.full(count, 1.0 / scale)], axis=-1))
            remaining -= count
        return jnp.concatenate(rows).astype(jnp.float32)
    return jnp.tile(jnp.array([[0.5, {"image": 1.0, "centre": 0.1}[kind]]], jnp.float32), (num_proposals, 1))
