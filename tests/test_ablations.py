"""configs/ablations.py: the paper's figures, and what each row changes."""

import dataclasses
import functools
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from sptad_jax.config import Config, ModelConfig, apply_overrides, load_config, to_dict, validate
from sptad_jax.models.detection_head import initial_segments
from sptad_jax.models.sptad import SPTAD
from sptad_jax.study import Table
from tests.test_docs import quoted, read, table_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASES = [path.stem for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "ablations"]


def load_base(name: str) -> Config:
    return load_config(str(ROOT / "configs" / f"{name}.py"))


def load_tables(base: Config) -> dict[str, Table]:
    return runpy.run_path(str(ROOT / "configs" / "ablations.py"))["get_tables"](base)


@pytest.fixture(scope="module")
def paper(shared):
    """Rows of Tables 4 to 8 as printed: (label, six figures), in order."""
    path = shared.parent / "paper.md"
    if not path.is_file():
        pytest.skip("the text of the paper (../shared/paper.md) is absent")
    tables = {}
    text = path.read_text(encoding="utf-8")
    for header, body, number in re.findall(r"^([^\n]*\t0\.3\t[^\n]*)\n(.*?)\n\nTable (\d): ", text, re.M | re.S):
        if header.endswith("\t0.3\t0.4\t0.5\t0.6\t0.7\tAvg") and number != "1":
            rows = [line.split("\t") for line in body.splitlines()]
            tables[number] = [(label, tuple(map(float, figures))) for label, *figures in rows]
    return tables


def test_figures_are_the_papers(paper):
    """A digit that was copied wrongly, a row in another's place, a row that the paper does not have."""
    base = load_base("thumos14")
    tables = load_tables(base)
    assert paper.keys() == tables.keys() - {"choices"} and sum(map(len, paper.values())) == 17
    for name, rows in paper.items():
        assert [row.paper for row in tables[name].rows] == [figures for _, figures in rows], name
        assert f"Table {name}" in tables[name].source
    labels = {name: [label for label, _ in rows] for name, rows in paper.items()}
    rates = [re.sub(r"\$1e\^\{(-\d)\}\$", r"1e\1", label) for label in labels["4"]]
    assert [float(rate) for rate in rates] == pytest.approx([
        apply_overrides(base, row.changes).train.backbone_lr_multiplier * base.train.learning_rate
        for row in tables["4"].rows])  # fmt: skip
    for name in ("5", "6", "8"):
        assert labels[name] == [row.name for row in tables[name].rows]
    assert [bool(label) for label in labels["7"]] == [
        apply_overrides(base, row.changes).model.clip_head for row in tables["7"].rows]  # fmt: skip


def changed(base: Config, row) -> dict[str, object]:
    """Options that a row sets to another value than the base, by "group.field"."""
    old, new = to_dict(base), to_dict(apply_overrides(base, row.changes))
    return {f"{group}.{field}": value for group, fields in new.items() for field, value in fields.items()
            if value != old[group][field]}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_rows_fit_each_base(name):
    """A row that no run can start with, or two names for one config in a table."""
    base = load_base(name)
    for table in load_tables(base).values():
        configs = [apply_overrides(base, row.changes) for row in table.rows]
        for config in configs:
            validate(config)
        assert len({row.name for row in table.rows}) == len(table.rows) == len(set(configs)), table.title


def test_rows_change_what_they_say():
    """A row that changes nothing, another option, or more than one thing."""
    tables = load_tables(base := load_base("thumos14"))
    found = {name: {row.name: changed(base, row) for row in table.rows} for name, table in tables.items()}
    rate, windows = "train.backbone_lr_multiplier", ("data.num_frames", "data.stride_test")
    assert found["4"] == {"0": {rate: 0.0}, "0.01": {rate: 0.01}, "0.1": {rate: 0.1}, "1": {}}
    assert found["5"] == {"Single Level": {"model.pyramid": "single"}, "High Level TFP": {"model.pyramid": "high"},
                          "Inter Level TFP": {}}
    assert found["6"] == {str(k): {"model.num_stages": k} if k != 4 else {} for k in (1, 2, 4, 6)}
    assert found["7"] == {"without": {"model.clip_head": False}, "with": {}}
    assert found["8"] == {str(f): dict(zip(windows, (f, s))) if f != 256 else {}
                          for f, s in ((224, 112), (256, 128), (288, 144), (320, 160))}
    model = {name: {f"model.{field}": value} for name, field, value in (
        ("level: round", "level_rule", "round"), ("level: ceil", "level_rule", "ceil"),
        ("level: expanded", "level_rule", "expanded"), ("initial segments: random", "proposal_init", "random"),
        ("initial segments: grid", "proposal_init", "grid"), ("initial segments: centre", "proposal_init", "centre"),
        ("SoI bins T': 8", "soi_bins", 8), ("SoI bins T': 32", "soi_bins", 32), ("eta: 2.5", "eta", 2.5),
        ("eta: 10.0", "eta", 10.0), ("SoI Align: legacy", "soi_align", "legacy"), ("fusion: late", "fusion", "late"),
        ("streams: rgb only", "streams", ("rgb",)), ("streams: flow only", "streams", ("flow",)))}
    assert found["choices"] == {"base": {}, **model, "class and clip probability: none": {"inference.combine": "none"}}


def test_rows_follow_the_base():
    """Table 7 with a clip probability that a base ignores; windows four times a small base's; a stream it lacks."""
    base = load_base("demo")  # 128 frames, grid, 8 bins, no clip probability
    tables = load_tables(base)
    assert [row.name for row in tables["8"].rows] == ["112", "128", "144", "160"]
    assert changed(base, tables["7"].rows[1]) == {"inference.combine": "product"}
    choices = {row.name for row in tables["choices"].rows}
    assert {"initial segments: image", "SoI bins T': 16", "class and clip probability: product"} <= choices
    assert not choices & {"initial segments: grid", "SoI bins T': 8", "class and clip probability: none"}
    short = load_tables(load_base("gmdcsa24"))["8"]  # 112 frames; 98, 126 and 140 are not multiples of 16
    assert [row.name for row in short.rows] == ["96", "112", "128", "144"]
    rgb = load_tables(load_base("thumos14_rgb"))["choices"]
    assert not any(word in row.name for row in rgb.rows for word in ("fusion", "streams"))


TINY = ModelConfig(
    width_multiplier=0.125, conv_mode="direct", hidden_dim=16, num_heads=4, dynamic_dim=4, ffn_dim=16, num_proposals=3)


@functools.cache
def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    inputs = {"rgb": np.zeros((1, 64, 32, 32, 3), np.float32), "flow": np.zeros((1, 64, 32, 32, 2), np.float32)}
    inputs = {stream: inputs[stream] for stream in model.streams}
    module = SPTAD(model, 3)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, None, train=False), inputs)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def test_rows_change_the_network():
    """An option of a row that the network does not read: its parameters are those of the base."""
    base = dataclasses.replace(load_base("thumos14"), model=TINY)
    tables = load_tables(base)
    found = {f"{name}, {row.name}": shapes(apply_overrides(base, row.changes).model)
             for name in ("5", "6", "7", "choices") for row in tables[name].rows
             if name != "choices" or re.match("base|fusion|streams|SoI bins", row.name)}  # fmt: skip
    whole = found["choices, base"]
    same = {name for name, parameters in found.items() if parameters == whole}
    assert same == {"5, Inter Level TFP", "6, 4", "7, with", "choices, base"}

    def parts(name, pattern):
        return {match[0] for path in found[name] for match in [re.search(pattern, path)] if match}

    for stages in (1, 2, 4, 6):
        assert parts(f"6, {stages}", r"stage_\d") == {f"stage_{k}" for k in range(stages)}
    assert parts("7, with", "classification_head") and not parts("7, without", "classification_head")
    assert parts("choices, streams: rgb only", "backbone_[a-z]+") == {"backbone_rgb"}
    assert parts("choices, streams: flow only", "backbone_[a-z]+") == {"backbone_flow"}
    assert len(found["5, Single Level"]) < len(found["5, High Level TFP"])
    heads = [len(parts(f"choices, {row}", r"^.*(?=/stage_0/)")) for row in ("base", "fusion: late")]
    assert heads == [1, 2]


def test_rows_change_the_initial_segments():
    """Two names of one initialisation."""
    rows = load_tables(base := load_base("thumos14"))["choices"].rows
    kinds = {apply_overrides(base, row.changes).model.proposal_init for row in rows}
    drawn = [np.asarray(initial_segments(jax.random.key(0), 20, kind)) for kind in sorted(kinds)]
    assert len(drawn) == 4
    assert all(np.abs(a - b).max() > 0.05 for k, a in enumerate(drawn) for b in drawn[:k])


def test_documented_rows_are_these():
    """docs/paper.md, which lists the options of each row for those who run train.py by hand, says something else."""
    tables = load_tables(load_base("thumos14"))
    documented: dict[str, list[tuple[str, ...]]] = {}
    name = ""
    for row in table_rows(read(ROOT / "docs" / "paper.md"), 3):
        name = row[0].partition(",")[0] or name
        documented.setdefault(name, []).append(tuple(quoted(row[2])))
    for name in ("4", "5", "7", "8"):
        assert documented[name] == [row.changes for row in tables[name].rows], name
    assert documented["6"] == [tables["6"].rows[0].changes]  # "and so on"
