"""How a synthetic video looks: background, actors, distractors, camera, light. Deterministic in the plan's seed.

Looks, homes and camera are drawn from streams of random numbers that know nothing of the classes.
"""

import dataclasses
import math

import cv2
import numpy as np

from data_prep.synthetic_actions import Instance, move_actor, wander

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue
SUPERSAMPLING = 2  # pictures are drawn this many times as wide and high, then averaged down


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the pictures depend on, besides a video's subset and number."""

    seed: int = 0
    size: int = 64  # width and height in pixels; even, as yuv420p asks
    fps: int = 10
    min_sec: float = 30.0  # length of a video, before it grows for long actions
    max_sec: float = 50.0
    crf: int = 18  # quality of libx264: 0 is lossless, 51 worst


@dataclasses.dataclass(frozen=True)
class Plan:
    """A video before it is drawn: its name, subset, length in frames and the timeline of each actor."""

    name: str
    subset: str
    seed: tuple[int, ...]
    num_frames: int
    lanes: list[list[Instance]]


@dataclasses.dataclass(frozen=True)
class Sprite:
    """A drawn thing: premultiplied RGBA patch float32 [P,P,4] in 0..255 (alpha 0..1) and its path.

    `path` [F,4]: x, y in picture heights from the left upper corner, angle in radians clockwise, scale;
    `diameter` in picture heights at scale 1.
    """

    patch: np.ndarray
    path: np.ndarray
    diameter: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a video shows: background texture float32 [P,P,3], camera paths [F,2] in picture heights, sprites."""

    background: np.ndarray
    pan: np.ndarray
    shake: np.ndarray
    gain: np.ndarray  # [F] brightness
    distractors: list[Sprite]
    actors: list[Sprite]
    noise: np.ndarray  # float32 [Q,size,size,3], one of the Q pictures is added to every frame
    noise_order: np.ndarray  # [F]


def smooth_noise(rng: np.random.Generator, pixels: int, cells: int, channels: int) -> np.ndarray:
    """Noise of about `cells` blobs across: float32 [pixels,pixels,channels], zero mean, standard deviation 1."""
    grid = rng.standard_normal((cells + 3, cells + 3, channels)).astype(np.float32)
    large = cv2.resize(grid, (pixels, pixels), interpolation=cv2.INTER_CUBIC).reshape(pixels, pixels, channels)
    return (large - large.mean(axis=(0, 1))) / (large.std(axis=(0, 1)) + 1e-6)


def draw_colour(rng: np.random.Generator, saturation: tuple[float, float], grey: tuple[float, float]) -> np.ndarray:
    """A random hue whose grey value lies in the range `grey` (0..255), as flow sees grey only: float32 [3]."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), 1.0]]], np.float32)
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    wanted, has = rng.uniform(*grey), float(colour @ GREY_WEIGHTS) * 255
    if has >= wanted:
        return colour * 255 * (wanted / has)
    return 255 * (1 - (1 - colour) * (255 - wanted) / (255 - has))  # towards white


def draw_outline(rng: np.random.Generator) -> np.ndarray:
    """A random polygon in the unit disc, float64 [V,2], never so round that its turning would be hidden."""
    kind = rng.integers(4)
    if kind == 0:  # bar
        half = rng.uniform(0.35, 0.5)
        return np.array([[-0.9, -half], [0.9, -half], [0.9, half], [-0.9, half]])
    if kind == 1:  # triangle
        bearings = np.deg2rad([0, rng.uniform(110, 150), rng.uniform(210, 250)])
        return np.stack([np.cos(bearings), np.sin(bearings)], axis=1)
    if kind == 2:  # hook: two bars at a right angle
        inner = rng.uniform(-0.15, 0.05)
        return np.array([[-0.75, -0.75], [0.75, -0.75], [0.75, inner], [inner, inner], [inner, 0.75], [-0.75, 0.75]])
    spokes, inner = int(rng.integers(3, 5)), rng.uniform(0.4, 0.55)  # star; the texture breaks its symmetry
    bearings = np.arange(2 * spokes) * np.pi / spokes
    radii = np.where(np.arange(2 * spokes) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(bearings), radii * np.sin(bearings)], axis=1)


def draw_patch(rng: np.random.Generator, pixels: int) -> np.ndarray:
    """A random look: polygon, two colours, smooth texture. Premultiplied RGBA float32 [pixels,pixels,4]."""
    big = 4 * pixels
    mask = np.zeros((big, big), np.uint8)
    corners = (draw_outline(rng) * 0.47 + 0.5) * big  # 0.47: a seam stays empty, so that borders are transparent
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255)
    alpha = cv2.resize(mask, (pixels, pixels), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    blend = 1 / (1 + np.exp(-4 * smooth_noise(rng, pixels, int(rng.integers(2, 5)), 1)))
    bright, dark = draw_colour(rng, (0.4, 1.0), (165, 225)), draw_colour(rng, (0.4, 1.0), (10, 50))
    return np.concatenate([(bright + (dark - bright) * blend) * alpha, alpha], axis=-1).astype(np.float32)


def build_actors(plan: Plan, times_sec: np.ndarray, canvas: int) -> list[Sprite]:
    """One sprite per lane, side by side where there are two, each with a home, a look and a gentle drift."""
    count = len(plan.lanes)
    sprites = []
    for actor, lane in enumerate(plan.lanes):
        rng = np.random.default_rng([*plan.seed, 1, actor])
        diameter = rng.uniform(0.62, 0.75) * (1.0 if count == 1 else 0.8)
        home = np.array([(actor + 0.5) / count, 0.5]) + rng.uniform(-1, 1, 2) * (0.1 if count == 1 else 0.04)
        if count == 2:
            home[0] = 0.5 + (home[0] - 0.5) * 0.92
        patch = draw_patch(rng, math.ceil(canvas * diameter))
        drift, sway = (wander(times_sec, rng, amplitude, hertz=0.12) for amplitude in (0.03, 0.12))
        # how many numbers the motion draws depends on the classes, hence a stream of its own
        path = move_actor(lane, times_sec, np.random.default_rng([*plan.seed, 4, actor]))
        path[:, :2] += home + drift
        path[:, 2] += sway[:, 0]
        sprites.append(Sprite(patch, path, diameter))
    return sprites


def build_distractors(plan: Plan, times_sec: np.ndarray, canvas: int) -> list[Sprite]:
    """None to two smaller sprites that drift in a line from wall to wall, or tremble on the spot."""
    rng = np.random.default_rng([*plan.seed, 2])
    sprites = []
    for _ in range(int(rng.integers(0, 3))):
        diameter = rng.uniform(0.2, 0.32)
        path = np.zeros((len(times_sec), 4))
        path[:, 2], path[:, 3] = rng.uniform(0, 2 * np.pi), 1.0
        bearing, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
        if rng.random() < 0.6:
            velocity = rng.uniform(0.04, 0.15) * np.array([np.cos(bearing), np.sin(bearing)])
            path[:, :2] = 1 - np.abs(np.mod(start + velocity * times_sec[:, None], 2) - 1)  # reflected at 0 and 1
        else:
            path[:, :2] = start + rng.normal(0, 0.015, (len(times_sec), 2))
        sprites.append(Sprite(draw_patch(rng, math.ceil(canvas * diameter)), path, diameter))
    return sprites


def build_scene(plan: Plan, settings: Settings) -> Scene:
    """Draws the looks and paths of a video. Deterministic in the plan's seed."""
    canvas = settings.size * SUPERSAMPLING
    times_sec = np.arange(plan.num_frames) / settings.fps
    rng = np.random.default_rng([*plan.seed, 3])
    texture = smooth_noise(rng, 2 * canvas, 10, 3) * 0.7 + smooth_noise(rng, 2 * canvas, 32, 1) * 0.5
    background = np.clip(draw_colour(rng, (0.1, 0.6), (75, 120)) + 11 * texture, 20, 190).astype(np.float32)
    bearing, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.02)
    pan = wander(times_sec, rng, amplitude=0.15, hertz=0.03)
    pan += speed * (times_sec[:, None] - times_sec.mean()) * np.array([np.cos(bearing), np.sin(bearing)])
    return Scene(
        background=background,
        pan=pan,
        shake=rng.uniform(0, 0.008) * rng.standard_normal((plan.num_frames, 2)).clip(-2, 2) / 2,
        gain=1 + wander(times_sec, rng, amplitude=0.05, hertz=1.0)[:, 0],
        distractors=build_distractors(plan, times_sec, canvas),
        actors=build_actors(plan, times_sec, canvas),
        noise=rng.normal(0, 3, (16, settings.size, settings.size, 3)).astype(np.float32),
        noise_order=rng.integers(0, 16, plan.num_frames),
    )


def paint(picture: np.ndarray, sprite: Sprite, frame: int, shift: np.ndarray) -> None:
    """Lays a sprite over `picture` float32 [H,H,3] in place; `shift` [2] moves it, in picture heights."""
    canvas, pixels = picture.shape[0], sprite.patch.shape[0]
    x, y, angle, scale = sprite.path[frame]
    x, y = (x + shift[0]) * canvas, (y + shift[1]) * canvas
    zoom = scale * sprite.diameter * canvas / pixels
    reach = 0.5 * math.sqrt(2) * pixels * zoom + 1
    left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
    right, bottom = min(canvas, math.ceil(x + reach)), min(canvas, math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    c, s, middle = zoom * math.cos(angle), zoom * math.sin(angle), (pixels - 1) / 2
    matrix = np.array([[c, -s, x - 0.5 - left - (c - s) * middle], [s, c, y - 0.5 - top - (s + c) * middle]])
    layer = cv2.warpAffine(sprite.patch, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    region = picture[top:bottom, left:right]
    region *= 1 - layer[..., 3:]
    region += layer[..., :3]


def render_frame(scene: Scene, frame: int) -> np.ndarray:
    """One picture of a scene: uint8 [size,size,3] RGB."""
    size = scene.noise.shape[1]
    canvas = size * SUPERSAMPLING
    corner = (scene.background.shape[0] - canvas) / 2 + (scene.pan[frame] - scene.shake[frame]) * canvas
    matrix = np.array([[1.0, 0, -corner[0]], [0, 1.0, -corner[1]]])
    picture = cv2.warpAffine(scene.background, matrix, (canvas, canvas), borderMode=cv2.BORDER_REFLECT)
    for sprite in (*scene.distractors, *scene.actors):
        paint(picture, sprite, frame, scene.shake[frame])
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    small = small * np.float32(scene.gain[frame]) + scene.noise[scene.noise_order[frame]]
    return np.clip(small, 0, 255).astype(np.uint8)
