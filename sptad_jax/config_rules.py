"""What values options may have, and which must go together: all that `validate` checks beyond each option's type."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sptad_jax.config import Config

# Every number among the options stands in one of these; of a list each item is held to it.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("must be at least 1", lambda x: x >= 1,
     "model.hidden_dim model.num_proposals model.soi_bins model.num_heads model.dynamic_dim model.ffn_dim "
     "model.num_stages data.num_frames data.stride_train data.stride_test data.max_targets train.batch_size "
     "train.accumulate train.log_every train.checkpoint_every train.keep_checkpoints inference.batch_size "
     "synthetic.train_videos synthetic.test_videos"),
    ("must be at least 16 pixels", lambda x: x >= 16, "data.crop_size synthetic.video_size synthetic.frame_size"),
    ("must be positive", lambda x: x > 0,
     "model.width_multiplier model.eta train.epochs train.learning_rate train.lr_drop_factor inference.nms_sigma "
     "synthetic.flow_bound"),
    ("must not be negative", lambda x: x >= 0,
     "model.sampling_ratio loss.class_weight loss.l1_weight loss.giou_weight loss.action_weight loss.class_cost "
     "loss.l1_cost loss.giou_cost loss.focal_gamma loss.stage_weights data.size_jitter data.color_jitter "
     "data.speed_jitter data.read_threads data.workers train.lr_drop_epochs train.warmup_steps "
     "train.weight_decay train.backbone_lr_multiplier train.clip_norm train.evaluate_every inference.max_per_class "
     "inference.max_per_video"),
    ("must lie in [0, 2**32)", lambda x: 0 <= x < 2**32, "train.seed synthetic.seed"),
    ("must lie in [0, 1]", lambda x: 0 <= x <= 1,
     "model.bn_momentum loss.focal_alpha data.min_tioa data.flip_prob data.mix_prob inference.min_score "
     "inference.nms_tiou inference.nms_min_score"),
    ("must lie in [0, 1)", lambda x: 0 <= x < 1, "model.dropout data.shear_jitter train.ema_decay"),
    ("must lie in (0, 1]", lambda x: 0 < x <= 1, "evaluation.tious"),
    ("must lie in (0, 1)", lambda x: 0 < x < 1, "model.prior_prob"),
)


def find_contradiction(config: "Config") -> str:
    """The first rule that the options break, in a sentence that names them; "" where all hold."""
    for words, holds, names in _RANGES:
        for name in names.split():
            group, field = name.split(".")
            value = getattr(getattr(config, group), field)
            if not all(map(holds, value if isinstance(value, tuple) else (value,))):
                return f"{name} is {value}; it {words}"
    return next((sentence for keeps, sentence in _combinations(config) if not keeps), "")


def _combinations(config: "Config") -> list[tuple[bool, str]]:
    """Whether each rule on several options holds, and its sentence. Numbers are known to lie in their ranges."""
    model, data, train, inference = config.model, config.data, config.train, config.inference
    return [
        (set(model.streams) <= {"rgb", "flow"} and bool(model.streams), "model.streams takes rgb, flow or both"),
        (len(set(model.streams)) == len(model.streams), "model.streams names a stream twice"),
        (model.fusion == "early" or len(model.streams) == 2, "model.fusion=late needs both streams"),
        (model.hidden_dim % model.num_heads == 0, "model.hidden_dim must be a multiple of model.num_heads"),
        (model.num_proposals >= data.max_targets,
         f"model.num_proposals ({model.num_proposals}) must be at least data.max_targets ({data.max_targets}): "
         "every target needs a proposal of its own (paper 3.1.3)"),
        (len(set(data.classes)) == len(data.classes), "data.classes names a class twice"),
        (data.num_frames % 16 == 0, "data.num_frames must be a multiple of 16, the stride of the coarsest level"),
        (data.stride_test <= data.num_frames,
         f"data.stride_test ({data.stride_test}) must be at most data.num_frames ({data.num_frames}): no window would "
         "see the frames between"),
        (train.batch_size % train.accumulate == 0, "train.batch_size must be a multiple of train.accumulate"),
        (not (inference.mirror and inference.share_backbone),
         "inference.mirror and inference.share_backbone do not go together; set one of them to false"),
        (not (inference.mirror and inference.edge_rule),
         "inference.mirror finds actions twice in a window, where inference.edge_rule suppresses none; set "
         "one of them to false"),
        (not (inference.mirror and inference.nms == "none"),
         "inference.mirror finds actions twice and needs inference.nms to be soft or hard; change one of the two"),
        (not inference.mirror or data.flip_prob > 0,
         "inference.mirror needs a detector that saw mirrored windows in training: data.flip_prob is 0; set "
         "inference.mirror=false"),
        (not config.loss.stage_weights or len(config.loss.stage_weights) == model.num_stages,
         "loss.stage_weights needs one weight per stage, or none"),
        (bool(config.evaluation.tious), "evaluation.tious names no threshold"),
        (len({f"{t:g}" for t in config.evaluation.tious}) == len(config.evaluation.tious),
         "evaluation.tious names a threshold twice"),
    ]
