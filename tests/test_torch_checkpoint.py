"""PyTorch's files without PyTorch: read as it reads them, and nothing in them ever runs."""

import collections
import io
import os
import pickle
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data_prep import convert_i3d
from data_prep.torch_checkpoint import read_state_dict
from sptad_jax.errors import UserError
from tests.reference.arrays import assert_same_bits


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(data=st.data())
def test_state_dicts_as_pytorch_reads_them(tmp_path_factory, legacy, data):
    """A view (transposed, sliced, of a shared storage), a kind of number, a parameter or an empty tensor that is read
    otherwise than by torch.load."""
    torch = pytest.importorskip("torch")
    base = torch.arange(24).reshape(2, 3, 4)
    kinds = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.int32])
    views = st.sampled_from([
        lambda t: t, lambda t: t.permute(2, 0, 1), lambda t: t[1:, :2, 1::2], lambda t: t[0, 0, 3], lambda t: t[:0],
        lambda t: t[:1].expand(5, 3, 4), lambda t: torch.nn.Parameter(t.float()),
    ])  # fmt: skip
    shared = base.to(data.draw(kinds))
    state = {f"n{i}": view(shared if data.draw(st.booleans()) else base.to(data.draw(kinds)))
             for i, view in enumerate(data.draw(st.lists(views, max_size=5)))}  # fmt: skip
    path = tmp_path_factory.mktemp("pt") / "w.pt"
    torch.save(collections.OrderedDict(state), path, _use_new_zipfile_serialization=not legacy)
    expected = {name: tensor.detach().numpy() for name, tensor in torch.load(path, weights_only=True).items()}
    assert_same_bits(read_state_dict(path), expected)


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def as_zip(pickled, **files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        for name, data in files.items():
            archive.writestr(f"w/data/{name}", data)
    return content.getvalue()


def as_legacy(pickled):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(value, 2) for value in head) + pickled + pickle.dumps([], 2)


def test_hostile_pickles_run_nothing(tmp_path, capsys):
    """Code that runs from a weights file, in either layout, or a traceback instead of a no."""
    mark = tmp_path / "ran"
    attacks = [
        pickle.dumps({"a": Malicious(mark)}, 2), pickle.dumps(Malicious(mark)),
        b"cbuiltins\neval\n(Vprint(1)\ntR.", b"ctorch\nload\n(Vx\ntR.",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(tR.", b"cnumpy\nload\n(Vx\ntR.",
        b"csptad_jax.files\nwrite_text\n(Vx\nVy\ntR.",
    ]  # fmt: skip
    for index, attack in enumerate(attacks):
        for wrap in (as_zip, as_legacy, lambda pickled: pickled):
            path = tmp_path / f"attack{index}.pt"
            path.write_bytes(wrap(attack))
            assert convert_i3d.main([str(path), str(tmp_path / "w.npz")]) == 2
            error = capsys.readouterr().err
            assert path.name in error and "refused to unpickle" in error and error.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "w.npz").exists()


@pytest.mark.parametrize("offset, shape, strides", [
    (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (4, (1,), (1,)),
    (0, (2,), ()),
])  # fmt: skip
def test_tensors_stay_within_their_storage(tmp_path, offset, shape, strides):
    """Memory behind a storage read as weights: a place that leaves its four numbers on either side."""
    # protocol 0; a storage is a persistent id
    tuples = "".join("(" + "".join(f"I{n}\n" for n in row) + "t" for row in (shape, strides))
    storage = "(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    pickled = f"(Va\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{tuples}I00\nNtRd."
    path = tmp_path / "w.pt"
    path.write_bytes(as_zip(pickled.encode(), **{"0": np.arange(4, dtype="<f4").tobytes()}))
    with pytest.raises(UserError, match=r"w\.pt: damaged"):
        read_state_dict(path)
    good = pickled.replace(f"({storage}I{offset}\n{tuples}", f"({storage}I1\n(I3\nt(I1\nt")
    path.write_bytes(as_zip(good.encode(), **{"0": np.arange(4, dtype="<f4").tobytes()}))
    np.testing.assert_array_equal(read_state_dict(path)["a"], [1, 2, 3])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damaged_state_dicts(tmp_path, legacy):
    """A file that is cut short anywhere, or another thing than tensors by name: a traceback, or fewer weights."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    state = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"w\.pt"):
            read_state_dict(path)
    for value in ([torch.zeros(2)], {"epoch": 3}, {"state_dict": {"a": torch.zeros(2)}}, torch.zeros(2)):
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"w\.pt"):
            read_state_dict(path)
    with pytest.raises(UserError, match=r"absent\.pt"):
        read_state_dict(tmp_path / "absent.pt")
