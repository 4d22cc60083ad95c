"""Pictures of a dataset: colours of flow against OpenCV and by hand, and sheets that hold what they say."""

import dataclasses

import cv2
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contact_sheet import INK, colour_flow, colour_motion, draw_contact_sheet, pick_evenly, shorten
from sptad_jax.data.annotations import Annotation
from sptad_jax.data.datasets import Dataset, StoredVideo, open_dataset
from sptad_jax.data.optical_flow import quantise_flow
from tests.reference.tiny_dataset import make_tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(make_tiny_dataset(tmp_path_factory.mktemp("sheet")))


def read_picture(path):
    """A PNG as uint8 RGB [H, W, 3]."""
    return (255 * matplotlib.image.imread(path)[..., :3]).round().astype(np.uint8)


@pytest.mark.parametrize(("motion", "colour"), [
    ((3, 0), (255, 0, 0)),  # right: red
    ((0, 3), (128, 255, 0)),  # down: between yellow and green
    ((-3, 0), (0, 255, 255)),  # left: cyan
    ((0, -3), (128, 0, 255)),  # up: violet
    ((0, 0), (255, 255, 255)),  # rest: white
    ((30, 0), (255, 0, 0)),  # beyond the bound: no more than full
    ((0.75, 0), (255, 128, 128)),  # a quarter of the bound: half as strong, by the square root
])
def test_known_directions(motion, colour):
    """Catches swapped x and y, a wheel that turns the other way, and a wrong scale."""
    found = colour_motion(np.array(motion, np.float64), 3.0)
    assert np.abs(found.astype(int) - colour).max() <= 1


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_wheel_is_opencvs(x, y):
    """Against OpenCV's own recipe for flow in colour (cartToPolar, hue = angle / 2), through its byte HSV."""
    bound = 10.0
    magnitude, angle = cv2.cartToPolar(np.float32([[x]]), np.float32([[y]]))
    strength = min(float(magnitude[0, 0]) / bound, 1) ** 0.5
    hsv = np.uint8([[[int(np.rint(np.degrees(angle[0, 0]) / 2)) % 180, round(255 * strength), 255]]])
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    found = colour_motion(np.array([x, y]), bound)
    assert np.abs(found.astype(int) - expected).max() <= 6  # a byte hue is 2 degrees: 8.5 in a channel a step


@pytest.mark.parametrize("bound", [2.5, 20.0])
def test_stored_flow(bound):
    """What the preparation writes comes back: rest is white, and motion has the colours of its pixels."""
    assert (colour_flow(quantise_flow(np.zeros((4, 5, 2)), bound), bound) == 255).all()
    assert (colour_flow(np.full((4, 5, 2), 127, np.uint8), bound) == 255).all()
    field = np.random.default_rng(0).uniform(-1.2 * bound, 1.2 * bound, (40, 30, 2))
    wanted = colour_motion(np.clip(field, -bound, bound), bound).astype(int)
    found = colour_flow(quantise_flow(field, bound), bound)
    assert found.shape == (40, 30, 3) and found.dtype == np.uint8
    moving = np.hypot(*np.moveaxis(field, -1, 0)) > 0.3 * bound  # near rest the hue of a byte is coarse
    assert np.abs(found - wanted)[moving].max() < 12


@given(st.integers(1, 500), st.integers(1, 30))
def test_pick_evenly(total, count):
    """Distinct, in order, in range, and evenly spread; as many as asked for where there are as many."""
    found = pick_evenly(total, count)
    assert len(found) == min(total, count) and found[0] >= 0 and found[-1] < total
    gaps = np.diff(found)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert abs(found[0] - (total - 1 - found[-1])) <= 1  # as far from the start as from the end


def test_pick_evenly_of_nothing():
    """No video asked for or none there: an empty answer, not a division by zero."""
    assert pick_evenly(0, 4) == pick_evenly(4, 0) == []


def test_names_are_cut():
    """Long names are cut, and characters that no file or picture can hold are replaced."""
    assert shorten("a" * 30, 10) == "a" * 9 + "…" and shorten("a" * 10, 10) == "a" * 10
    assert shorten("跑步跑步", 8) == "跑步跑步" and shorten("跑步跑步", 7) == "跑步跑…"
    assert shorten(" two\n lines\t", 20) == "two lines"
    assert shorten("\ud800\x07x", 5) == "\N{REPLACEMENT CHARACTER}" * 2 + "x"


def test_sheet_shows_frames_and_flow(dataset, tmp_path):
    """The size as stated, and at the place of each tile the very frame of its time, with its flow below."""
    draw_contact_sheet(dataset, 0, tmp_path / "sheet.png")
    picture = read_picture(tmp_path / "sheet.png")
    assert picture.shape[1] == 1300 and [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    video = dataset.videos[0]
    for tile, number in enumerate(pick_evenly(video.num_frames, 10)):
        frames = dataset.read_frames(0, number, number + 1)
        centre = 175 + 110 * tile + 55
        for top, wanted in [(40, frames["rgb"][0]), (150, colour_flow(frames["flow"][0], 20.0))]:
            shown = picture[top + 6:top + 104, centre - 48:centre + 48].astype(float)
            wanted = cv2.resize(wanted, (105, 105), interpolation=cv2.INTER_NEAREST).astype(float)[4:102, 5:101]
            assert np.abs(shown - wanted).mean() < 6, (tile, top)


def test_sheet_shows_segments(dataset, tmp_path):
    """A bar in the colour of its class covers its seconds, in the lane of its class, and nothing else does."""
    draw_contact_sheet(dataset, 0, tmp_path / "sheet.png")
    picture = read_picture(tmp_path / "sheet.png").astype(int)
    for lane, (label, colour) in enumerate([("jump", "#0072b2"), ("run", "#d55e00")]):  # the order of classes
        rows = [row.segment_sec for row in dataset.videos[0].annotations if row.label == label]
        middle = round(40 + 2 * 110 + 12 + 27 * (lane + 0.5)) - 8  # above the letters in the bar
        is_bar = np.abs(picture[middle] - [int(colour[k:k + 2], 16) for k in (1, 3, 5)]).max(axis=-1) < 10
        seconds = (np.arange(1300) + 0.5 - 175) / 1100 * 7.5
        inside = np.any([(seconds > a + 0.02) & (seconds < b - 0.02) for a, b in rows], axis=0)
        outside = ~np.any([(seconds > a - 0.02) & (seconds < b + 0.02) for a, b in rows], axis=0)
        assert is_bar[inside].all() and not is_bar[outside].any()


def make_dataset(video: StoredVideo, classes: list[str], streams=("rgb", "flow"), size: int = 20) -> Dataset:
    """A dataset of one video whose frames are made up, so that any names and lengths can be drawn."""
    channels = {"rgb": 3, "flow": 2}

    class MadeUp(Dataset):
        def read_frames(self, video_index, start, stop, streams=None):
            assert 0 <= start < stop <= video.num_frames
            return {name: np.full((stop - start, size, size, channels[name]), 90, np.uint8) for name in self.streams}

    info = {"streams": list(streams), "flow": {"bound": 4.0} if "flow" in streams else None, "frame_size": size}
    return MadeUp(None, info, [video], tuple(classes))  # type: ignore[arg-type]


VIDEO = StoredVideo("one", "train", 100, 10.0, 10.0, 0, [Annotation((1.0, 2.0), "a")])


def test_two_hundred_classes(tmp_path):
    """As many classes as ActivityNet's in one video must not make the picture endless, and the rest is said."""
    names = [f"class {k} with a rather long name for a lane" for k in range(200)]
    rows = [Annotation((k / 25, k / 25 + 1), name) for k, name in enumerate(names)]
    dataset = make_dataset(dataclasses.replace(VIDEO, annotations=rows, name="n" * 300), names)
    draw_contact_sheet(dataset, 0, tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    assert picture.shape[1] == 1300 and picture.shape[0] <= 900
    bar = np.abs(picture[:, 185].astype(int) - [0, 0x72, 0xb2]).max(axis=-1) < 10
    assert 15 < bar.sum() < 27  # the lane of the first class has its full height
    assert (picture[:, :8] == 255).all() and (picture[:, -8:] == 255).all()  # no name runs over the edge
    assert (picture[8:30, 1030:1080] == 255).all()  # nor the title into the facts on its right


@pytest.mark.parametrize("name", ["跑步 видео प्रदर्शन عرض", "$\\frac{$", "a\nb\ud800", "", "_hidden", "🤸", "%d {x}"])
def test_any_name(tmp_path, name):
    """Other scripts, signs that Matplotlib gives a meaning, and broken characters: drawn without a warning."""
    video = dataclasses.replace(VIDEO, name=name, subset="test", annotations=[Annotation((1.0, 2.0), name)])
    draw_contact_sheet(make_dataset(video, [name]), 0, tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").std() > 5


@pytest.mark.parametrize(("video", "streams"), [
    (dataclasses.replace(VIDEO, num_frames=1, duration_sec=0.04, fps=10.0, annotations=[]), ("rgb", "flow")),
    (dataclasses.replace(VIDEO, num_frames=3, duration_sec=0.3, annotations=[]), ("rgb",)),
    (dataclasses.replace(VIDEO, num_frames=72000, duration_sec=7200.0, annotations=[
        Annotation((k * 3.0, k * 3.0 + 0.2), "a") for k in range(2000)]), ("rgb", "flow")),
    (dataclasses.replace(VIDEO, annotations=[Annotation((1.0, 5.0 + k), "a") for k in range(5)]), ("flow",)),
])  # fmt: skip
def test_odd_videos(tmp_path, video, streams):
    """One frame, no instance, no flow, two hours with 2,000 instances, many instances over each other."""
    draw_contact_sheet(make_dataset(video, ["a"], streams), 0, tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    assert picture.shape == (40 + 110 * len(streams) + 12 + 27 + 50, 1300, 3)
    ink = np.array([int(INK[k:k + 2], 16) for k in (1, 3, 5)])
    assert (np.abs(picture[:40].astype(int) - ink).max(axis=-1) < 30).any()  # the title


def test_a_failed_picture_leaves_nothing(dataset, tmp_path):
    """A folder that is not there: OSError, and no half-written file anywhere."""
    with pytest.raises(OSError):
        draw_contact_sheet(dataset, 0, tmp_path / "absent" / "x.png")
    assert not list(tmp_path.iterdir())
