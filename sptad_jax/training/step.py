"""One optimisation step as a pure function: (state, batch) -> (state, metrics)."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sptad_jax.config import CHANNELS, Config
from sptad_jax.data import augment
from sptad_jax.models.conv3d import fit_to_device
from sptad_jax.models.sptad import SPTAD
from sptad_jax.training import losses, optimizer, sharding

Array = jax.Array
Batch = dict[str, Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    step: int32 [], steps done. params, batch_stats: trees of the model. opt_state: of optax.
    ema_params: averaged parameters, or {} when train.ema_decay is 0.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any


def random_key(seed: int, name: str, step: Array | int) -> Array:
    """A key that depends on (seed, name, step) alone, so that a resumed run draws what it would have drawn."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)


def init_variables(config: Config, num_classes: int) -> dict[str, Any]:
    """Random parameters and batch statistics of the detector for the config's window size (float32)."""
    model = SPTAD(config.model, num_classes)
    shape = (1, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    inputs = {name: jnp.zeros((*shape, CHANNELS[name])) for name in config.model.streams}
    init = jax.jit(lambda key: model.init(key, inputs, None, train=False))
    # Runs once: hundreds of random draws, whose optimised compilation takes a minute on two cores.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    on_cpu = jax.default_backend() == "cpu"
    key = random_key(config.train.seed, "init", 0)
    variables = init.lower(key).compile(compiler_options=options if on_cpu else None)(key)  # type: ignore[arg-type]
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def create_state(variables: dict[str, Any], tx: optax.GradientTransformation, config: Config) -> TrainState:
    """The state of step 0."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if config.train.ema_decay else {},
    )


def make_train_step(
    config: Config, num_classes: int, tx: optax.GradientTransformation, mesh: Mesh | None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the jitted step (its state argument is donated).

    With train.accumulate = k the batch is cut into k micro-batches whose gradients are averaged; the loss is still
    normalised by the targets of the whole batch, so the step equals the unaccumulated one, but for what is drawn
    (augmentation, dropout: other draws) and BatchNorm in "train" mode (statistics of a micro-batch).
    """
    model_config, compiler_options = fit_to_device(config.model)
    if config.train.backbone_lr_multiplier == 0:  # Table 4's offline feature extractor: its statistics stay, too
        model_config = dataclasses.replace(model_config, bn_mode="frozen")
    model = SPTAD(model_config, num_classes)
    accumulate = config.train.accumulate
    sharded_on = mesh if config.train.shard_state else None

    def loss_of(params: Any, batch_stats: Any, batch: Batch, num_positives: Array, keys: tuple[Array, Array]):
        params = optimizer.stop_frozen(params, config)
        with jax.named_scope("augmentation"):
            inputs = augment.prepare(batch, config.data, keys[0], train=True)
        frame_mask = jnp.arange(config.data.num_frames) < batch["num_frames"][:, None]
        (predictions, _), updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            frame_mask,
            train=True,
            rngs={"dropout": keys[1]},
            mutable=["batch_stats"],
        )
        with jax.named_scope("losses"):
            total, metrics = losses.compute_losses(
                predictions,
                batch,
                config.loss,
                mesh=mesh,
                num_positives=num_positives,
                num_groups=len(config.model.streams) if config.model.fusion == "late" else 1,
            )
        return total, (metrics, updates.get("batch_stats", batch_stats))

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        keys = tuple(random_key(config.train.seed, name, state.step) for name in ("augment", "dropout"))
        num_positives = jnp.maximum(batch["valid"].sum().astype(jnp.float32), 1.0) / accumulate
        whole = _gather(state.params, sharded_on), _gather(state.batch_stats, sharded_on)
        if accumulate == 1:
            (_, (metrics, batch_stats)), grads = gradient(*whole, batch, num_positives, keys)
        else:
            grads, metrics, batch_stats = _accumulate(gradient, *whole, batch, num_positives, keys, accumulate)
        grads = _split(grads, sharded_on)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = state.ema_params
            if config.train.ema_decay:
                ema_params = optimizer.update_ema(ema_params, params, config.train.ema_decay, state.step)
            metrics["grad_norm"] = optax.tree.norm(grads)
        state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema_params=ema_params
        )
        return _split(state, sharded_on), metrics

    return jax.jit(train_step, donate_argnums=(0,), compiler_options=compiler_options)


def _gather(tree: Any, mesh: Mesh | None) -> Any:
    """Whole leaves on every device for the network; nothing to do where the state is not split."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def _split(tree: Any, mesh: Mesh | None) -> Any:
    """Each device its part, so that it sums and updates no more than that."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, sharding.split_shardings(tree, mesh))


def _accumulate(
    gradient: Callable, params: Any, batch_stats: Any, batch: Batch, num_positives: Array, keys: Any, count: int
):
    """Averages gradients and metrics over `count` micro-batches, one after the other."""
    # Micro-batch i takes rows i, i + count, ...: every device keeps rows of its own in each of them.
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(carry: Any, item: Any):
        grads, batch_stats = carry
        index, rows = item
        row_keys = tuple(jax.random.fold_in(key, index) for key in keys)
        (_, (metrics, batch_stats)), new = gradient(params, batch_stats, rows, num_positives, row_keys)
        return (jax.tree.map(jnp.add, grads, new), batch_stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, batch_stats), metrics = jax.lax.scan(body, (zeros, batch_stats), (jnp.arange(count), micro))
    mean = jax.tree.map(lambda x: x / count, grads)
    return mean, jax.tree.map(lambda x: x.mean(0), metrics), batch_stats
