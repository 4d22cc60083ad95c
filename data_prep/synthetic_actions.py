"""What happens in a synthetic video and when: classes, durations, timelines and the movement of an actor.

The ten classes come in five pairs; within a pair the second action is the first one played backwards, so that a
single frame cannot tell the two apart and the order of frames must be seen. The classes of three pairs (spin, orbit,
slide) turn into each other in a mirror: train on them with `data.flip_prob = 0`.

Lengths are shares of the picture's height, times are seconds, angles radians, y points down as in an image.
"""

import dataclasses

import numpy as np

CLASSES = (
    "spin_clockwise",
    "spin_anticlockwise",
    "orbit_clockwise",
    "orbit_anticlockwise",
    "swell_fast_shrink_slow",
    "shrink_fast_swell_slow",
    "rise_fast_sink_slow",
    "sink_fast_rise_slow",
    "slide_left_fast_right_slow",
    "slide_right_fast_left_slow",
)
SPIN, ORBIT, SWELL, RISE, SLIDE = range(5)  # the pairs, in the order of CLASSES
PAIRS = tuple((CLASSES[i], CLASSES[i + 1]) for i in range(0, len(CLASSES), 2))

# Quantiles of the duration of a THUMOS14 instance (training annotation, 10 fps); the two ends are ours.
DURATION_QUANTILES = (0.0, 0.05, 0.25, 0.50, 0.75, 0.90, 0.95, 1.0)
DURATIONS_SEC = (0.6, 0.7, 1.5, 2.9, 5.5, 8.0, 9.7, 13.0)

RAMP_SEC = 0.3  # an action gains and loses its speed over this time
SPIN_HZ = 0.4  # turns a second: at 10 fps flow follows 14 degrees a frame, and loses a rim that turns much faster
ORBIT_HZ = 0.7
SWELL_HZ = 0.6  # cycles a second of swelling
SWAY_HZ = 0.9  # cycles a second of rising and sliding
FAST_SHARE = 0.15  # of a cycle, taken by its fast half: a snap, so that the slow half tells the class
ORBIT_RADIUS = 0.14
SWAY_AMPLITUDE = 0.16  # of rising and sliding, to either side of the middle
SCALE_RANGE = (0.35, 1.0)
MIN_GAP_SEC = 0.5  # between two actions of one actor


@dataclasses.dataclass(frozen=True)
class Instance:
    """One action: onset and end in seconds from the start of the video, its class, and its tempo (1 is usual)."""

    start_sec: float
    end_sec: float
    label: str
    tempo: float


def draw_durations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Durations of `count` instances: float64 [count] seconds, spread as those of THUMOS14.

    The inverse distribution function, linear between the known quantiles in the logarithm of the duration.
    """
    return np.exp(np.interp(rng.random(count), DURATION_QUANTILES, np.log(DURATIONS_SEC)))


def plan_lanes(rng: np.random.Generator, min_sec: float, max_sec: float) -> tuple[list[list[Instance]], float]:
    """Draws the timelines of a video's one or two actors and the video's length.

    Durations are drawn first and the video grows where they need more room than `max_sec`: a rejected timeline would
    make long actions rare. Classes are dealt from a shuffled pack, so that they stay balanced over few videos.

    Returns:
        lanes: one list of instances per actor, each in order of time and without overlap; two lanes do overlap.
        duration_sec: length of the video.
    """
    wanted_sec = rng.uniform(min_sec, max_sec)
    num_actors = 1 if rng.random() < 0.65 else 2
    # about one instance in 6 s of a lane: 5 to 8 in a video
    per_lane = [max(1, round(wanted_sec / (6.0 if num_actors == 1 else 10.0) + rng.uniform(-1, 1)))
                for _ in range(num_actors)]
    durations = [draw_durations(rng, count) for count in per_lane]
    needed_sec = max(float(d.sum()) + MIN_GAP_SEC * (len(d) + 1) for d in durations)
    duration_sec = max(wanted_sec, needed_sec)
    pack: list[str] = []
    lanes = []
    for lane_durations in durations:
        count = len(lane_durations)
        idle_sec = duration_sec - lane_durations.sum() - MIN_GAP_SEC * (count + 1)
        gaps = MIN_GAP_SEC + idle_sec * rng.dirichlet(np.full(count + 1, 1.5))
        starts = np.cumsum(gaps[:-1]) + np.concatenate([[0.0], np.cumsum(lane_durations)[:-1]])
        lane = []
        for start, length in zip(starts, lane_durations):
            pack = pack or [CLASSES[i] for i in rng.permutation(len(CLASSES))]
            lane.append(Instance(float(start), float(start + length), pack.pop(), float(rng.uniform(0.75, 1.25))))
        lanes.append(lane)
    return lanes, duration_sec


def elapsed_at_full_speed(times_sec: np.ndarray, instance: Instance) -> np.ndarray:
    """Integral of an action's speed, which ramps from 0 to 1 and back over RAMP_SEC (less for a short action).

    Args:
        times_sec: [F] seconds from the start of the video.
    Returns: [F] seconds at full speed that have passed since the onset; constant before it and after the end.
    """
    length = instance.end_sec - instance.start_sec
    ramp = min(RAMP_SEC, length / 4)
    t = np.clip(times_sec - instance.start_sec, 0.0, length)

    def ramp_up(u: np.ndarray) -> np.ndarray:  # integral of (1 - cos(pi u / ramp)) / 2 up to the ramp's end
        u = np.clip(u, 0.0, ramp)
        return u / 2 - ramp / (2 * np.pi) * np.sin(np.pi * u / ramp)

    steady = np.clip(t - ramp, 0.0, length - 2 * ramp)
    return ramp_up(t) + steady + ramp / 2 - ramp_up(length - np.maximum(t, length - ramp))


def cycle_value(phase: np.ndarray | float) -> np.ndarray:
    """A cycle that climbs from 0 to 1 in FAST_SHARE of the phase and comes back in the rest; phase in turns."""
    phase = np.mod(phase, 1.0)
    progress = np.where(phase < FAST_SHARE, phase / FAST_SHARE, (1.0 - phase) / (1.0 - FAST_SHARE))
    return (1.0 - np.cos(np.pi * progress)) / 2


def phase_of_value(value: float, rng: np.random.Generator) -> float:
    """A phase at which `cycle_value` equals `value`: on either half, as often as the half lasts.

    Both classes of a pair use it alike, hence it gives a class away neither by where nor by how an action begins.
    """
    progress = float(np.arccos(np.clip(1.0 - 2.0 * value, -1.0, 1.0)) / np.pi)
    return FAST_SHARE * progress if rng.random() < FAST_SHARE else 1.0 - (1.0 - FAST_SHARE) * progress


def move_actor(lane: list[Instance], times_sec: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where an actor is at every moment: it idles where its last action left it, and the next begins from there.

    Args:
        lane: its instances, in order of time.
        times_sec: [F].
    Returns: float64 [F, 4]: x and y from its home in picture heights, angle (clockwise on the screen), scale.
    """
    poses = np.zeros((len(times_sec), 4))
    start_angle = rng.uniform(0, 2 * np.pi)
    offset = ORBIT_RADIUS * np.array([np.cos(start_angle), np.sin(start_angle)])
    angle = rng.uniform(0, 2 * np.pi)
    low, high = SCALE_RANGE
    size = float(cycle_value(rng.random()))  # 0 smallest, 1 largest
    poses[:] = [*offset, angle, low + (high - low) * size]
    for instance in lane:
        pair, backwards = divmod(CLASSES.index(instance.label), 2)
        turns = (-1) ** backwards * instance.tempo * elapsed_at_full_speed(times_sec, instance)
        now = times_sec >= instance.start_sec  # up to the video's end: the next instance overwrites what follows it
        if pair == SPIN:
            poses[now, 2] = (poses[:, 2] + 2 * np.pi * SPIN_HZ * turns)[now]
        elif pair == ORBIT:
            bearing = np.arctan2(offset[1], offset[0])
            centre = offset - ORBIT_RADIUS * np.array([np.cos(bearing), np.sin(bearing)])
            bearings = bearing + 2 * np.pi * ORBIT_HZ * turns
            circle = centre + ORBIT_RADIUS * np.stack([np.cos(bearings), np.sin(bearings)], axis=-1)
            poses[now, :2] = circle[now]
        elif pair == SWELL:
            values = cycle_value(phase_of_value(size, rng) + SWELL_HZ * turns)
            poses[now, 3] = (low + (high - low) * values)[now]
            size = float(values[-1])
        else:  # RISE or SLIDE: value 1 is the highest or leftmost point, hence the smallest y or x
            axis = 1 if pair == RISE else 0
            height = float(np.clip(-offset[axis], -SWAY_AMPLITUDE, SWAY_AMPLITUDE))
            values = cycle_value(phase_of_value((height / SWAY_AMPLITUDE + 1) / 2, rng) + SWAY_HZ * turns)
            poses[now, axis] = (offset[axis] + height - SWAY_AMPLITUDE * (2 * values - 1))[now]
        offset = poses[-1, :2].copy()
    return poses


def wander(times_sec: np.ndarray, rng: np.random.Generator, amplitude: float, hertz: float) -> np.ndarray:
    """A gentle, smooth drift: float64 [F, 2], the sum of two slow sines per axis, at most `amplitude` from zero."""
    frequencies = hertz * rng.uniform(0.5, 1.5, (2, 2))
    phases = rng.uniform(0, 2 * np.pi, (2, 2))
    waves = np.sin(2 * np.pi * frequencies[None] * times_sec[:, None, None] + phases[None])
    return amplitude * waves.mean(axis=2)
