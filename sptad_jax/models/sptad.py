"""The whole detector (paper 3.1, Figure 2): backbones, pyramid, action detection head, action classification head."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sptad_jax.config import ModelConfig
from sptad_jax.errors import UserError
from sptad_jax.models.classification_head import ClassificationHead
from sptad_jax.models.detection_head import DetectionHead
from sptad_jax.models.i3d import I3D
from sptad_jax.models.temporal_fpn import TemporalFPN

Array = jax.Array
Predictions = dict[str, Array]


class SPTAD(nn.Module):
    """Windows of frames -> predictions of every stage, and a dict that names every intermediate in order of computing.

    Call: inputs, stream -> float32 [B, F, H, W, C] in [-1, 1]; frame_mask bool [B, F], true for real frames, or None
    if all are; `train` switches dropout and batch norm. With `features`, stream -> end points [B, T_l, H_l, W_l, C_l]
    in the order of the config, the backbones (`make_backbone`) are not run. Raises UserError where a stream is missing.

    predictions, all float32: "class_logits" [S, B, N, A]; "segments_se" [S, B, N, 2], share of the window, not clipped;
    "clip_logits" [B, A], absent without the classification head. With fusion="late" each stream has a detector of its
    own (parameters under its name), the first axis is S * G for G streams, stage-major (stage k of stream g at
    k * G + g), and clip logits are the mean over streams.
    """

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(
        self, inputs: dict[str, Array], frame_mask: Array | None = None, *, train: bool,
        features: dict[str, list[Array]] | None = None,
    ) -> tuple[Predictions, dict[str, Array]]:
        config = self.config
        features = features or self._run_backbones(inputs, train)
        features = {stream: features[stream] for stream in config.streams}  # jit sorts the keys of a dict
        out = {f"{stream}/{name}": level for stream, levels in features.items()
               for name, level in zip(config.end_points, levels, strict=True)}

        if config.fusion == "late":
            return self._late(features, frame_mask, out, train)
        fused = [jnp.concatenate(level, axis=-1) for level in zip(*features.values(), strict=True)]
        out |= {f"fused/{name}": level for name, level in zip(config.end_points, fused, strict=True)}
        predictions, detector_out = detect(config, self.num_classes, fused, frame_mask, train)
        return predictions, out | detector_out

    def _run_backbones(self, inputs: dict[str, Array], train: bool) -> dict[str, list[Array]]:
        config = self.config
        missing = [stream for stream in config.streams if stream not in inputs]
        if missing:
            raise UserError(f"model.streams asks for {', '.join(missing)}, but the input holds {', '.join(inputs)}; "
                            "set model.streams to the streams of the data.")
        features = {}
        for stream in config.streams:
            with jax.named_scope(f"backbone_{stream}"):
                end_points = make_backbone(config, stream)(inputs[stream], train=train)
            features[stream] = [end_points[name] for name in config.end_points]
        return features

    def _late(
        self, features: dict[str, list[Array]], frame_mask: Array | None, out: dict[str, Array], train: bool
    ) -> tuple[Predictions, dict[str, Array]]:
        """One detector per stream, joined stage by stage."""
        per_stream: list[Predictions] = []
        for stream, levels in features.items():
            predictions, stream_out = StreamDetector(self.config, self.num_classes, name=stream)(
                levels, frame_mask, train=train)
            per_stream.append(predictions)
            out |= {f"{stream}/{name}": value for name, value in stream_out.items()}
        joined = {}
        for name in ("class_logits", "segments_se"):
            stacked = jnp.stack([p[name] for p in per_stream], axis=1)  # [S, G, B, N, ...]
            joined[name] = stacked.reshape(-1, *stacked.shape[2:])
        if self.config.clip_head:
            joined["clip_logits"] = jnp.stack([p["clip_logits"] for p in per_stream]).mean(axis=0)
        return joined, out | joined


def make_backbone(config: ModelConfig, stream: str) -> I3D:
    """The backbone of a stream; in a detector's variables it has its own name."""
    return I3D(
        width_multiplier=config.width_multiplier, end_points=config.end_points, bn_mode=config.bn_mode,
        bn_momentum=config.bn_momentum, conv_mode=config.conv_mode, remat=config.remat,
        dtype=jnp.dtype(config.compute_dtype), name=f"backbone_{stream}",
    )  # fmt: skip


class StreamDetector(nn.Module):
    """Pyramid and heads of one stream, for late fusion (AFSD thumos14/test.py:123-145 fuses this way)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(
        self, features: Sequence[Array], frame_mask: Array | None, *, train: bool
    ) -> tuple[Predictions, dict[str, Array]]:
        return detect(self.config, self.num_classes, features, frame_mask, train)


def detect(
    config: ModelConfig, num_classes: int, features: Sequence[Array], frame_mask: Array | None, train: bool
) -> tuple[Predictions, dict[str, Array]]:
    """End points [B, T_l, H_l, W_l, C_l] -> predictions, intermediates. Its modules belong to the calling module."""
    dtype = jnp.dtype(config.compute_dtype)
    with jax.named_scope("temporal_fpn"):
        levels = TemporalFPN(config, dtype, name="temporal_fpn")(features)
    out = {f"pyramid/level_{index}": level for index, level in enumerate(levels)}
    with jax.named_scope("detection_head"):
        class_logits, segments_se, head_out = DetectionHead(config, num_classes, dtype, name="detection_head")(
            levels, train=train)
    out |= head_out
    predictions = {"class_logits": class_logits, "segments_se": segments_se}
    if config.clip_head:
        with jax.named_scope("classification_head"):
            predictions["clip_logits"] = ClassificationHead(config, num_classes, dtype, name="classification_head")(
                features, frame_mask)
    return predictions, out | predictions


def final_predictions(predictions: Predictions, config: ModelConfig) -> tuple[Array, Array]:
    """The last stage: class logits [B, N', A], segments_se [B, N', 2]; N' = G * N, all streams' proposals, if late."""
    num_streams = len(config.streams) if config.fusion == "late" else 1

    def last(x: Array) -> Array:
        x = jnp.moveaxis(x[-num_streams:], 0, 1)  # [B, G, N, ...]
        return x.reshape(x.shape[0], -1, x.shape[-1])

    return last(predictions["class_logits"]), last(predictions["segments_se"])
