"""The demo's data: rendered and prepared by the options of a config, and left alone when it is there."""

import json

import pytest

from data_prep import prepare, synthetic
from data_prep.demo import main
from sptad_jax.config import load_config
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.video import decode_video
from sptad_jax.training.sharding import make_mesh

OPTIONS = {"train_videos": 2, "test_videos": 1, "video_size": 32, "frame_size": 24, "flow_bound": 3.0, "seed": 5}


def arguments(folder, **options):
    pairs = {f"synthetic.{name}": value for name, value in (OPTIONS | options).items()}
    pairs["data.dataset_dir"] = folder / "dataset"
    sets = [part for name, value in pairs.items() for part in ("--set", f"{name}={value}")]
    return ["--config", "configs/demo.py", "--processes", "1", *sets]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(arguments(folder)) == 0
    return folder


def test_options_reach_the_dataset(prepared):
    """An option of the config that nothing reads; videos and dataset that are mixed up; subsets that train.py lacks."""
    dataset = open_dataset(prepared / "dataset")
    names = sorted(path.stem for path in (prepared / "dataset_videos" / "videos").iterdir())
    assert names == ["synthetic_test_0000", "synthetic_train_0000", "synthetic_train_0001"]
    assert sorted(video.name for video in dataset.videos) == names
    config = load_config("configs/demo.py")
    assert len(dataset.indices_of(config.data.train_subset)) == 2
    assert len(dataset.indices_of(config.data.test_subset)) == 1
    assert dataset.frame_size == 24 and dataset.source["flow"].items() >= {"method": "dis", "bound": 3.0}.items()
    assert json.loads((prepared / "dataset_videos" / "settings.json").read_text())["seed"] == 5
    frames = decode_video(prepared / "dataset_videos" / "videos" / "synthetic_train_0000.mp4", 10, 32).frames
    assert len(frames) == dataset.videos[dataset.indices_of("train")[0]].num_frames


def test_second_run_changes_nothing(prepared, monkeypatch, capsys):
    """`make demo` after a stop that renders and decodes everything again."""
    def fail(*args, **kwargs):
        raise AssertionError("worked again")

    monkeypatch.setattr(synthetic, "render_file", fail)
    monkeypatch.setattr(prepare, "find_videos", fail)
    before = (prepared / "dataset" / "dataset.json").read_bytes()
    assert main(arguments(prepared)) == 0
    assert (prepared / "dataset" / "dataset.json").read_bytes() == before
    assert "2 training and 1 test videos are ready" in capsys.readouterr().out


def test_other_options_are_refused(prepared, capsys):
    """A dataset of seed 5 that a run with seed 6 takes for its own."""
    assert main(arguments(prepared, seed=6)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err


def test_bad_option_is_one_line(tmp_path, capsys):
    """A traceback for a misspelt option."""
    assert main([*arguments(tmp_path), "--set", "synthetic.video=3"]) == 2
    err = capsys.readouterr().err
    assert "synthetic.video" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_demo_config_fits_its_data():
    """A demo that is refused by its own dataset: crop, batch, subsets."""
    config = load_config("configs/demo.py")
    assert config.data.crop_size <= config.synthetic.frame_size <= config.synthetic.video_size
    assert (config.data.train_subset, config.data.test_subset) == ("train", "test")
    make_mesh(config.train.batch_size)
