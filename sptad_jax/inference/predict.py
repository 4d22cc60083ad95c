"""3.2.2: windows -> last stage x clip probability -> detections of whole videos -> mAP."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from sptad_jax.config import Config
from sptad_jax.data import augment
from sptad_jax.data.datasets import Dataset
from sptad_jax.errors import UserError
from sptad_jax.evaluation.average_precision import evaluate
from sptad_jax.evaluation.files import load_ground_truth
from sptad_jax.files import AnyPath, write_json
from sptad_jax.inference.postprocess import (
    external_row,
    load_external_scores,
    windows_to_detections,
    write_detections,
)
from sptad_jax.inference.sharing import SharedForward, join, run_batches
from sptad_jax.models.conv3d import fit_to_device
from sptad_jax.models.sptad import SPTAD, final_predictions, make_backbone
from sptad_jax.precision import wide
from sptad_jax.training import sharding
from sptad_jax.training.distributed import is_main
from sptad_jax.training.metrics import Progress

Forward = Callable[[Any, dict[str, np.ndarray]], dict[str, jax.Array]]


def make_forward(config: Config, num_classes: int, mesh: Mesh | None = None) -> Forward:
    """Jitted (variables, batch) -> {"class_prob" [B,N,A], "segments_norm" [B,N,2], "clip_prob" [B,A]}, float32.

    With `inference.mirror` the proposals of the mirrored window follow, N being twice the model's, and "clip_prob" is
    the mean of both. With `inference.share_backbone` a SharedForward, for `run_batches`; UserError where the strides do
    not allow it.
    `mesh`: devices of this process that share a batch, each of which holds the variables; None: the default device.
    """
    model_config, compiler_options = fit_to_device(config.model)
    config = dataclasses.replace(config, model=model_config)
    model = SPTAD(model_config, num_classes)
    jit = functools.partial(jax.jit, compiler_options=compiler_options)
    place = functools.partial(sharding.shard_batch, mesh=mesh) if mesh else lambda rows: rows
    if config.inference.share_backbone:
        return _make_shared_forward(config, model, jit, place)

    def look(variables: Any, batch: dict[str, jax.Array], mirror: bool) -> dict[str, jax.Array]:
        inputs = augment.prepare(batch, config.data, None, train=False, mirror=mirror)
        return _answer(model, config, variables, inputs, batch["num_frames"])

    @jit
    def forward(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        plain = look(variables, batch, mirror=False)
        return _join_mirrored(plain, look(variables, batch, mirror=True)) if config.inference.mirror else plain

    def call(variables: Any, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return forward(variables, place({name: batch[name] for name in (*config.model.streams, "num_frames")}))

    return call


def _make_shared_forward(
    config: Config, model: SPTAD, jit: Callable[..., Any], place: Callable[[Any], Any]
) -> SharedForward:
    """`make_forward` in two parts. Raises UserError where windows cannot be put together from whole steps."""
    length, stride = config.data.num_frames, config.data.stride_test
    if config.inference.mirror:
        raise UserError("inference.share_backbone: looks at no mirror; set inference.mirror=false.")
    if length % stride or stride % 8:
        raise UserError(f"inference.share_backbone: data.stride_test ({stride}) must divide data.num_frames ({length}) "
                        "and be a multiple of 8, the stride of the coarsest end point; change it or share nothing.")
    streams = config.model.streams

    @jit
    def extract(variables: Any, batch: dict[str, jax.Array]) -> dict[str, list[jax.Array]]:
        inputs = augment.prepare(batch, config.data, None, train=False)
        features = {}
        for stream in streams:
            name = f"backbone_{stream}"
            own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            end_points: Any = make_backbone(config.model, stream).apply(own, inputs[stream], train=False)
            features[stream] = [end_points[name] for name in config.model.end_points]
        if config.model.fpn_spatial == "mean":  # pyramid and clip head begin with this mean: less is kept, none is lost
            features = jax.tree.map(lambda x: x.mean(axis=(2, 3), keepdims=True, dtype=wide(x)), features)
        return features

    @jit
    def finish(variables: Any, old: Any, new: Any, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def cut(old: jax.Array, new: jax.Array) -> jax.Array:
            both = jnp.concatenate([old, new])
            return join(both[rows["first"]], both[rows["second"]], rows["shift"], length)

        return _answer(model, config, variables, {}, rows["num_frames"], jax.tree.map(cut, old, new))

    return SharedForward(
        lambda variables, batch: extract(variables, place({name: batch[name] for name in (*streams, "num_frames")})),
        lambda variables, old, new, rows: finish(variables, old, new, place(rows)), length)  # fmt: skip


def _answer(
    model: SPTAD, config: Config, variables: Any, inputs: dict[str, jax.Array], num_frames: jax.Array,
    features: dict[str, list[jax.Array]] | None = None,
) -> dict[str, jax.Array]:
    """What the last stage says of each window, as probabilities."""
    frame_mask = jnp.arange(config.data.num_frames) < num_frames[:, None]
    predictions, _ = model.apply(variables, inputs, frame_mask, train=False, features=features)
    class_logits, segments_norm = final_predictions(predictions, config.model)
    out = {"class_prob": jax.nn.sigmoid(class_logits), "segments_norm": segments_norm}
    if "clip_logits" in predictions:
        out["clip_prob"] = jax.nn.sigmoid(predictions["clip_logits"])
    return out


def _join_mirrored(plain: dict[str, jax.Array], mirrored: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A mirror leaves times as they are, so proposals of both add up; the clip's classes are judged by both alike."""
    return {name: (value + mirrored[name]) / 2 if name == "clip_prob" else jnp.concatenate([value, mirrored[name]], 1)
            for name, value in plain.items()}  # fmt: skip


def predict_windows(
    forward: Forward, variables: Any, batches: Iterable[dict[str, np.ndarray]], num_windows: int, gather: bool = False
) -> dict[int, dict[str, np.ndarray]]:
    """Runs every window -> video index -> arrays of that video's windows, stacked on axis 0, with "start_frame".

    With `gather` the batches are those of this process alone, every process has equally many, and all get the result
    for the windows of all.
    """
    columns: dict[str, list[np.ndarray]] = {}
    progress = Progress(0, num_windows, "window", "predict")
    for out, batch in run_batches(forward, variables, batches):
        places = {name: batch[name] for name in ("video_index", "start_frame", "is_real")}
        for name, value in (jax.device_get(out) | places).items():
            columns.setdefault(name, []).append(value)
        progress.update(int(batch["is_real"].sum()) * (jax.process_count() if gather else 1))
    progress.close()
    rows = {name: np.concatenate(values) for name, values in columns.items()}
    if gather:  # window k is the k // n-th one of process k % n
        rows = {name: np.concatenate(value.swapaxes(0, 1)) for name, value in process_allgather(rows).items()}
    rows = {name: value[rows["is_real"]] for name, value in rows.items() if name != "is_real"}
    video_index = rows.pop("video_index")
    return {int(i): {name: value[video_index == i] for name, value in rows.items()} for i in np.unique(video_index)}


def check_test_videos(dataset: Dataset, config: Config) -> dict[str, dict[str, float]]:
    """External scores of the test videos, video -> label -> score; {} without `inference.external_scores`.

    Raises UserError for all that would keep `evaluate_state` from ending, so that nobody learns of it after days of
    training: a test subset that the dataset lacks or that has no annotation, or external scores that do not fit.
    """
    videos = [dataset.videos[index] for index in dataset.indices_of(config.data.test_subset)]
    if not any(video.annotations for video in videos):
        raise UserError(f"{dataset.path}: the subset '{config.data.test_subset}' has no annotation to be scored "
                        "against; set data.test_subset to one that has.")
    path = config.inference.external_scores
    external = load_external_scores(path, [video.name for video in videos]) if path else {}
    for row in external.values():
        external_row(row, dataset.classes)
    return external


def evaluate_state(
    variables: dict[str, Any], dataset: Dataset, config: Config, workdir: AnyPath, forward: Forward | None = None
) -> dict[str, Any]:
    """Detects in every test video; writes detections.json and results.json into `workdir`; returns the results.

    `variables`: {"params", "batch_stats"}. The ground truth is the one kept beside the dataset. All processes call it
    and share the windows; no computation spans several of them until the predictions are gathered, so that none waits
    for another before that. Each returns the results, the first one writes the files.
    """
    from sptad_jax.data.pipeline import make_test_batches  # here, as detection in a file does without Grain

    forward = forward or make_forward(config, len(dataset.classes))
    batches = make_test_batches(
        dataset, config.data, sharding.round_up(config.inference.batch_size, jax.device_count()), config.model.streams,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    external = check_test_videos(dataset, config)
    predicted = predict_windows(forward, variables, batches, batches.num_windows, gather=True)
    detections: dict[str, list[dict[str, Any]]] = {}
    for index in dataset.indices_of(config.data.test_subset):
        video = dataset.videos[index]
        detections[video.name] = windows_to_detections(
            predicted[index],
            duration_sec=video.duration_sec,
            fps=video.fps,
            config=config,
            classes=dataset.classes,
            external=external.get(video.name),
        )
    if is_main():
        write_detections(workdir / "detections.json", detections)
    results = evaluate(
        load_ground_truth(dataset.ground_truth_path),
        {"results": detections},
        config.evaluation.tious,
        subset=config.data.test_subset,
    )
    if is_main():
        write_json(workdir / "results.json", results)
    return results
