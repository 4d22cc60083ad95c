"""Cropping, flipping, colouring and scaling of uint8 windows on the device (paper 4.1)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sptad_jax.config import DataConfig


def prepare(
    batch: Mapping[str, jax.Array], config: DataConfig, key: jax.Array | None, train: bool, mirror: bool = False
) -> dict[str, jax.Array]:
    """Turns a batch of the Grain pipeline into the network's inputs; jit it with `config` and `train` static.

    Training cuts one random square out of each window and flips it with probability `flip_prob`; every frame of the
    window and both streams share the draw. With `size_jitter` s > 0 it cuts a rectangle instead, whose height and width
    are `crop_size` times exp(u), u uniform in -s..s for each, at most those of the frames, and resizes it to the square
    by linear interpolation. With `shear_jitter` s it is a parallelogram, each of whose sides leans by a share u of the
    other, uniform in -s..s: shears and small rotations. The flow is turned and grows as its frames do. Testing cuts the
    central square. Bytes become x / 255 * 2 - 1 (as AFSD, AFSD/common/thumos_dataset.py:264). With `color_jitter` s,
    training maps the RGB values v of a window to M v + b, kept in [-1, 1], where M is the identity plus normal noise of
    deviation s and b is such noise: brightness, contrast, hue and saturation in one draw, alike in all frames. Then
    frames from num_frames on get the padding value.

    Args:
      batch: "rgb" uint8 [B, F, H, W, 3] and/or "flow" uint8 [B, F, H, W, 2], and "num_frames" int32 [B].
      config: crop_size, random_crop, size_jitter, shear_jitter, flip_prob, flip_negates_flow_x, color_jitter and
        pad_value are read.
      key: random key of the step; needed in training only.
      train: augment, or not.
      mirror: flip all windows; read in testing only.

    Returns: dict of the batch's streams, float32 [B, F, crop, crop, C] in [-1, 1].

    Raises ValueError where training has no key, or where the crop is larger than the frames.
    """
    streams = {name: batch[name] for name in ("rgb", "flow") if name in batch}
    batch_size, num_frames, height, width = next(iter(streams.values())).shape[:4]
    crop = config.crop_size
    if crop > min(height, width):
        raise ValueError(f"crop_size {crop} is larger than the frames ({height} x {width})")

    if train:
        if key is None:
            raise ValueError("training needs a random key")
        offsets, flips, boxes = _draw_crops(key, batch_size, (height, width), config)
    else:
        offsets, flips, boxes = _central_crops(batch_size, (height, width), crop), jnp.full(batch_size, mirror), None
    real = jnp.arange(num_frames) < batch["num_frames"][:, None]
    pad_value = {"zero": 0.0, "minus_one": -1.0, "afsd": -1.0 if train else 0.0}[config.pad_value]

    inputs = {}
    for name, frames in streams.items():
        if boxes is None:
            scaled = _scale(_crop(frames, offsets, crop))
        else:
            scaled = _resize(_scale(frames), boxes, crop)
            if name == "flow":
                scaled = jnp.clip(_turn_flow(scaled, boxes, crop), -1.0, 1.0)
        flipped = scaled[:, :, :, ::-1]
        if name == "flow" and config.flip_negates_flow_x:
            flipped = flipped * jnp.array([-1.0, 1.0])
        scaled = jnp.where(flips[:, None, None, None, None], flipped, scaled)
        if name == "rgb" and train and config.color_jitter:
            scaled = _jitter_colors(scaled, config.color_jitter, jax.random.fold_in(key, 1))  # type: ignore[arg-type]
        inputs[name] = jnp.where(real[:, :, None, None, None], scaled, pad_value)
    return inputs


def _scale(frames: jax.Array) -> jax.Array:
    return (frames.astype(jnp.float32) * 2 - 255) / 255  # in this order 255 is exactly 1


def _jitter_colors(rgb: jax.Array, strength: float, key: jax.Array) -> jax.Array:
    """A random affine map of the colours of each window, float32 [B, F, H, W, 3] in [-1, 1]."""
    noise = strength * jax.random.normal(key, (rgb.shape[0], 4, 3))
    mixed = jnp.einsum("bfhwc,bcd->bfhwd", rgb, noise[:, :3] + jnp.eye(3))
    return jnp.clip(mixed + noise[:, None, None, 3:4], -1.0, 1.0)


def _central_crops(count: int, size: tuple[int, int], crop: int) -> jax.Array:
    """Offsets (y, x) of the squares in the middle of frames of `size`, int32 [count, 2]."""
    return jnp.broadcast_to((jnp.array(size) - crop) // 2, (count, 2))


def _draw_crops(
    key: jax.Array, count: int, size: tuple[int, int], config: DataConfig
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Offsets (y, x) of squares [count, 2], which windows to flip [count], and parallelograms in the squares' place."""
    crop_key, flip_key = jax.random.split(key)
    offsets, boxes = _central_crops(count, size, config.crop_size), None
    if config.random_crop:
        spare = jnp.array(size) - config.crop_size
        offsets = jax.random.randint(crop_key, (count, 2), 0, spare + 1)
    if config.size_jitter or config.shear_jitter:
        boxes = _draw_boxes(jax.random.fold_in(key, 2), count, size, config)
    return offsets, jax.random.bernoulli(flip_key, config.flip_prob, (count,)), boxes


def _draw_boxes(key: jax.Array, count: int, size: tuple[int, int], config: DataConfig) -> jax.Array:
    """Parallelograms about rectangles within frames of `size` (height, width), float32 [count, 6].

    (y, x, height, width) of the rectangle in pixels, then by which share of the height its upper side rises or falls,
    and by which share of the width its left one leans.
    """
    sides_key, place_key = jax.random.split(key)
    factors = jnp.exp(jax.random.uniform(sides_key, (count, 2), minval=-config.size_jitter, maxval=config.size_jitter))
    sides = jnp.minimum(config.crop_size * factors, jnp.array(size, jnp.float32))
    places = jax.random.uniform(place_key, (count, 2)) if config.random_crop else 0.5
    shear = config.shear_jitter
    leaning = jax.random.uniform(jax.random.fold_in(key, 3), (count, 2), minval=-shear, maxval=shear)
    return jnp.concatenate([places * (jnp.array(size) - sides), sides, leaning], axis=-1)


def _resize(frames: jax.Array, boxes: jax.Array, crop: int) -> jax.Array:
    """Parallelograms [B, 6] out of float [B, F, H, W, C], as [B, F, crop, crop, C].

    The output at (u, v), both in -1/2..1/2 from the middle, is the frame at y = y_mid + height (u + lean_y v) and
    x = x_mid + width (v + lean_x u). Done along x first, where u follows from y and v, then along y (Catmull and Smith
    1980): two products with sparse weights, where a lookup of four neighbours would be slow on every device.
    """
    height, width = frames.shape[2:4]
    y_side, x_side, lean_y, lean_x = (boxes[:, i, None, None] for i in range(2, 6))
    y_mid, x_mid = boxes[:, 0, None, None] + y_side / 2 - 0.5, boxes[:, 1, None, None] + x_side / 2 - 0.5
    u = v = (jnp.arange(crop) + 0.5) / crop - 0.5
    y = y_mid + y_side * (u + lean_y * v[:, None])  # [B, crop along x, crop along y]
    u_of_row = (jnp.arange(height)[:, None] - y_mid) / y_side - lean_y * v  # [B, height, crop along x]
    x = x_mid + x_side * (v + lean_x * u_of_row)
    along_x, along_y = _interpolation(x, width), _interpolation(y, height)
    highest = jax.lax.Precision.HIGHEST
    frames = jnp.einsum("byjx,bfyxc->bfyjc", along_x, frames, precision=highest)
    return jnp.einsum("bjiy,bfyjc->bfijc", along_y, frames, precision=highest)


def _interpolation(places: jax.Array, size: int) -> jax.Array:
    """Weights [..., size] of linear interpolation at places [...] in pixels; the border pixel goes on beyond it."""
    return jnp.maximum(1 - jnp.abs(jnp.clip(places, 0, size - 1)[..., None] - jnp.arange(size)), 0)


def _turn_flow(flow: jax.Array, boxes: jax.Array, crop: int) -> jax.Array:
    """Flow [B, F, crop, crop, 2] (x, y) of pixels of the frames, in pixels of their parallelograms [B, 6]."""
    lean_y, lean_x = boxes[:, 4], boxes[:, 5]
    x, y = crop / boxes[:, 3], crop / boxes[:, 2]
    # inverse of [[1, b], [a, 1]], which takes steps (v, u) to steps of the frame
    rows = jnp.array([[x, -lean_x * y], [-lean_y * x, y]]) / (1 - lean_y * lean_x)
    return jnp.einsum("ocb,bfhwc->bfhwo", rows, flow, precision=jax.lax.Precision.HIGHEST)


def _crop(frames: jax.Array, offsets: jax.Array, crop: int) -> jax.Array:
    """Squares at (y, x) offsets [B, 2] out of [B, F, H, W, C]; still bytes, so the gather moves a quarter."""
    num_frames, height, width, channels = frames.shape[1:]
    if crop == height and crop == width:
        return frames

    def cut(window: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(window, (0, offset[0], offset[1], 0), (num_frames, crop, crop, channels))

    return jax.vmap(cut)(frames, offsets)
