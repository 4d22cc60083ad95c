"""Devices and hosts: every number of them trains the same detector, and goes on where another number stopped.

The hosts are processes on this machine, each with simulated CPU devices, that run train.py from the command line to the
report: windows are read by every process for itself, with random crops, flips and colours, and steps accumulate.
"""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sptad_jax.training.checkpoints import load_arrays
from tests.reference import processes
from tests.reference.tiny_dataset import make_tiny_dataset

STEPS, SAVED = 20, 10
CONFIG = '''
from sptad_jax.config import *

def get_config():
    return Config(
        model=ModelConfig(
            streams=("rgb",), end_points=("Conv3d_2b_1x1",), width_multiplier=0.0625, pyramid="single", hidden_dim=16,
            num_proposals=4, proposal_init="grid", soi_bins=2, num_heads=2, dynamic_dim=4, ffn_dim=16, num_stages=2),
        data=DataConfig(dataset_dir={dataset!r}, train_subset="training", test_subset="testing", num_frames=16,
                        crop_size=16, stride_train=1, stride_test=4, max_targets=4, read_threads=0, color_jitter=0.1),
        train=TrainConfig(epochs=10.0, batch_size=16, accumulate=2, clip_norm=0.1, learning_rate={rate}, ema_decay=0.5,
                          log_every=1, checkpoint_every=10, keep_checkpoints=3),
        inference=InferenceConfig(min_score=0.0, nms="none", batch_size=3))
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(dataset=str(make_tiny_dataset(folder)), rate=1e-4))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def arguments(config, workdir, *options):
    return ["--config", str(config), "--workdir", str(workdir), *options]


@pytest.fixture(scope="module")
def runs(config, cache):
    """Uninterrupted runs by (processes, devices); and by ("4 ->", devices) those that go on from step 10 of the one
    with four devices, where "split" has two hosts with two devices each and splits the state over them."""
    folders = {key: config.parent / f"run_{key[0]}_{key[1]}" for key in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2))}
    resumed = {("4 ->", count): config.parent / f"resumed_{count}" for count in (1, 8)}
    processes.run([arguments(config, folders[1, 4])], cache, devices=4)
    resumed["4 ->", "split"] = split = config.parent / "resumed_split"
    for folder in resumed.values():
        shutil.copytree(folders[1, 4] / "checkpoints" / str(SAVED), folder / "checkpoints" / str(SAVED))
    processes.run([arguments(config, split, "--set", "train.shard_state=true")], cache, processes=2, devices=2)
    for key in ((1, 1), (1, 2), (1, 8), (2, 2)):
        chosen = [folders[key], *(resumed[again] for again in [("4 ->", key[1])] if again in resumed)]
        processes.run([arguments(config, folder) for folder in chosen], cache, processes=key[0], devices=key[1])
    return folders | resumed


def read_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def difference(expected, found, part="model/"):
    """Largest relative difference (2-norm) of an array, over all arrays of a part (parameters, statistics and averages
    of the model, or the optimiser's moments) but those that nothing depends on."""
    assert expected.keys() == found.keys()
    expected = {path: value for path, value in expected.items() if path.startswith(part)}
    assert len(expected) > 100
    worst = 0.0
    for path, value in expected.items():
        if path.endswith("key/bias"):  # softmax ignores it: its gradient is rounding, of which Adam makes whole steps
            continue
        change = np.linalg.norm(value.astype(np.float64) - found[path])
        worst = max(worst, change / max(np.linalg.norm(value.astype(np.float64)), 1e-30))
    return worst


@pytest.mark.parametrize(
    "key", [(1, 2), (1, 4), (1, 8), (2, 2), ("4 ->", 1), ("4 ->", 8), ("4 ->", "split")], ids=str)
def test_devices_and_hosts_change_nothing(runs, key):
    """A loss normalised by a part of the targets, gradients that are not summed or not clipped as one, micro-batches of
    other windows, an average, moment or window that differs between hosts, crops and flips drawn by host, a checkpoint
    that fits the number of devices which wrote it alone. Losses, parameters, averages and moments after 20 steps."""
    expected, found = read_losses(runs[1, 1]), read_losses(runs[key])
    steps = range(1 if key[0] != "4 ->" else SAVED + 1, STEPS + 1)
    assert list(found) == list(steps)
    assert max(abs(found[step] / expected[step] - 1) for step in steps) <= 1e-5
    arrays = [load_arrays(runs[k] / "checkpoints") for k in ((1, 1), key)]
    assert difference(*arrays) <= 1e-5
    assert difference(*arrays, "optimizer/") <= 5e-5  # those of the first kernel are small differences of large sums


def test_training_is_no_trifle(runs, tmp_path):
    """Runs that are equal because nothing moves: parameters and losses must change by far more than the tolerance."""
    losses = read_losses(runs[1, 1])
    assert abs(losses[20] / losses[1] - 1) > 1e-2
    shutil.copytree(runs[1, 4] / "checkpoints" / str(SAVED), tmp_path / str(SAVED))
    assert difference(load_arrays(tmp_path), load_arrays(runs[1, 4] / "checkpoints")) > 1e-2


@pytest.mark.parametrize("key", [(1, 8), (2, 2), ("4 ->", "split")], ids=str)
def test_evaluation_is_shared_and_equal(runs, key):
    """Windows lost, doubled, or given to another video when hosts share them (15 windows fill no batch of 4 or 8)."""
    expected, found = (json.loads((runs[k] / "detections.json").read_text())["results"] for k in ((1, 1), key))
    assert expected.keys() == found.keys()
    for name in expected:
        rows = [sorted((row["label"], *row["segment"], row["score"]) for row in side[name])
                for side in (expected, found)]
        assert len(rows[0]) == len(rows[1]) > 100
        assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]
        np.testing.assert_allclose([row[1:] for row in rows[0]], [row[1:] for row in rows[1]], rtol=1e-4, atol=2e-4)


COUNT = """
    import jax
    from sptad_jax.training import sharding
    from sptad_jax.training.optimizer import make_optimizer
    from sptad_jax.training.step import make_train_step
    from tests.reference.tiny_training import CONFIG, NUM_CLASSES, change, make_batch, new_state
    for size, split in ((4, False), (12, False), (4, True), (12, True)):
        config = change(CONFIG, train={"batch_size": size, "shard_state": split}, loss={"matcher": "optax"})
        state, mesh = new_state(config), sharding.make_mesh(size)
        state = sharding.split(state, mesh) if split else state
        tx, *_ = make_optimizer(state.params, config, 2)
        batch = sharding.shard_batch(make_batch(0, size), mesh)
        text = make_train_step(config, NUM_CLASSES, tx, mesh).lower(state, batch).compile().as_text()
        held = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        print("PROGRAM", sum(x.nbytes for x in jax.tree.leaves(state.params)), held, text, flush=True)
"""
COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\(")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8, "bf16": 2, "u8": 1}


@pytest.fixture(scope="module")
def programs(cache):
    """Compiled steps on two devices, of batches of 4 and 12 without and with a split state: bytes of all parameters,
    bytes of parameters and moments that one device holds, and (kind, bytes) of all that crosses between devices."""
    done = subprocess.run([sys.executable, "-c", COUNT.replace("\n    ", "\n")], cwd=processes.ROOT, check=False,
                          env=processes.environment(cache, 2), capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for program in done.stdout.split("PROGRAM ")[1:]:
        total, held = map(int, program.split()[:2])
        sizes = [(kind, sum(BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
                            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes)))
                 for shapes, kind in COLLECTIVE.findall(program)]  # fmt: skip
        found.append((total, held, sizes))
    assert len(found) == 4
    return found


def test_one_all_reduce_of_the_gradients(programs):
    """A step that gathers windows or logits, sums gradients twice, or array by array: what crosses between devices is
    one sum of the gradients and the number of targets, whatever the batch. Counted in the compiled program."""
    for total, _, sizes in programs[:2]:
        assert {kind for kind, _ in sizes} == {"all-reduce"}
        large = [size for _, size in sizes if size > 100]
        assert len(large) == 1 and len(sizes) <= 2, sizes
        assert 0.5 * total < large[0] and sum(size for _, size in sizes) <= 1.05 * total
    assert sorted(programs[0][2]) == sorted(programs[1][2])


def test_a_split_state_is_gathered_once_and_summed_once(programs):
    """Windows or activations that are sent because their kernels are split; a state that is whole on every device after
    all. The largest kernel is half of what this tiny detector splits, and is gathered in another shape as well."""
    for (total, held, sizes), (_, held_whole, _) in zip(programs[2:], programs[:2]):
        assert held < 0.75 * held_whole  # half, but for leaves of less than 4 kB
        sent = {kind: sum(size for other, size in sizes if other == kind) for kind, _ in sizes}
        assert 0 < sent.pop("all-gather") <= 1.6 * total and 0 < sent.pop("all-reduce") <= 1.05 * total
        assert not sent
    assert sorted(programs[2][2]) == sorted(programs[3][2])
