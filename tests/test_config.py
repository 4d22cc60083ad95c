"""Options: overrides, their errors, the rules of `validate`, JSON and config files."""

import dataclasses
import json
import typing

import pytest

from sptad_jax import config as configs
from sptad_jax.config import Config, apply_overrides, from_dict, load_config, to_dict, validate
from sptad_jax.errors import UserError


@pytest.mark.parametrize(("assignment", "value"), [
    ("model.num_stages=3", 3),
    ("train.learning_rate=2", 2.0),  # an int where a float is asked for
    ("train.learning_rate=3e-5", 3e-5),
    ('model.streams=["rgb"]', ("rgb",)),
    ("model.streams=flow", ("flow",)),  # one item without brackets
    ("model.bn_mode=train", "train"),
    ("model.remat=true", True),
    ("model.remat=False", False),  # Python's spelling
    ("model.sampling_ratio=0", 0),
    ("data.dataset_dir=/some/where=else", "/some/where=else"),  # an equals sign in the value
    ("loss.stage_weights=[1, 0.5]", (1.0, 0.5)),
    ("train.lr_drop_epochs=[]", ()),
    ("model.fpn_lateral_kernel=3", 3),
])
def test_override_sets_one_field(assignment, value):
    """A value read as the wrong type, or a change of another field."""
    changed = apply_overrides(Config(), [assignment])
    group, field = assignment.partition("=")[0].split(".")
    assert getattr(getattr(changed, group), field) == value
    assert type(getattr(getattr(changed, group), field)) is type(value)
    before, after = to_dict(Config()), to_dict(changed)
    before[group].pop(field)
    after[group].pop(field)
    assert before == after


def test_later_override_wins():
    """Overrides applied in another order than written."""
    assert apply_overrides(Config(), ["model.eta=2", "model.eta=3"]).model.eta == 3


@pytest.mark.parametrize(("assignment", "words"), [
    ("model.num_stagez=3", ["model.num_stagez", "did you mean 'model.num_stages'"]),
    ("num_stages=3", ["num_stages", "did you mean"]),
    ("xyzzy=3", ["xyzzy", "config.py"]),
    ("model.num_stages", ["model.num_stages", "group.field=value"]),
    ("model.num_stages=3.5", ["model.num_stages", "3.5", "int"]),
    ("model.num_stages=true", ["model.num_stages", "int"]),  # a bool is an int in Python
    ("model.num_stages=many", ["model.num_stages", "many", "int"]),
    ("model.remat=1", ["model.remat", "bool"]),
    ("train.learning_rate=fast", ["train.learning_rate", "fast", "float"]),
    ("train.learning_rate=true", ["train.learning_rate", "float"]),
    ("model.bn_mode=thawed", ["model.bn_mode", "thawed", "frozen_stats"]),
    ("model.fpn_lateral_kernel=2", ["model.fpn_lateral_kernel", "1, 3"]),
    ("model.fpn_lateral_kernel=true", ["model.fpn_lateral_kernel"]),  # True == 1
    ("model.streams=[1]", ["model.streams", "str"]),
    ("data.dataset_dir=3", ["data.dataset_dir", "str"]),
    ("data.dataset_dir=__import__('os').getcwd()", None),  # accepted as text, never evaluated
])
def test_bad_override_is_one_clear_sentence(assignment, words):
    """A misspelt or mistyped option that is taken silently, or an error that does not name the field."""
    if words is None:
        assert apply_overrides(Config(), [assignment]).data.dataset_dir == assignment.partition("=")[2]
        return
    with pytest.raises(UserError) as error:
        apply_overrides(Config(), [assignment])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_defaults_are_valid_and_the_papers():
    """A default that drifts from the paper's THUMOS14 setting (4.1), or that `validate` refuses."""
    config = Config()
    validate(config)
    assert (config.data.num_frames, config.data.crop_size, config.data.stride_train) == (256, 96, 30)
    assert (config.train.batch_size, config.train.learning_rate, config.train.weight_decay) == (16, 1e-4, 1e-4)
    assert (config.train.epochs, config.train.lr_drop_epochs, config.train.lr_drop_factor) == (16, (12,), 0.1)
    assert (config.model.num_proposals, config.model.num_stages, config.model.eta) == (50, 4, 5)
    assert config.model.hidden_dim == 256 and config.evaluation.tious == (0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.mark.parametrize(("assignments", "word"), [
    (["model.streams=[]"], "model.streams"),
    (['model.streams=["rgb", "depth"]'], "model.streams"),
    (['model.streams=["rgb", "rgb"]'], "model.streams"),
    (["model.fusion=late", 'model.streams=["rgb"]'], "model.fusion"),
    (["model.num_heads=3"], "model.num_heads"),
    (["model.num_stages=0"], "model.num_stages"),
    (["model.eta=0"], "model.eta"),
    (["model.num_proposals=10", "data.max_targets=11"], "model.num_proposals (10)"),
    (["data.num_frames=250"], "data.num_frames"),
    (["data.num_frames=64"], "data.stride_test (128) must be at most data.num_frames (64)"),
    (["data.crop_size=8"], "data.crop_size"),
    (["data.flip_prob=1.5"], "data.flip_prob"),
    (["inference.mirror=true", "inference.share_backbone=true"], "do not go together"),
    (["inference.mirror=true", "inference.edge_rule=true"], "inference.edge_rule"),
    (["inference.mirror=true", "data.flip_prob=0"], "data.flip_prob is 0"),
    (["train.accumulate=3"], "train.accumulate"),
    (["train.epochs=0"], "train.epochs"),
    (["loss.stage_weights=[1, 1]"], "loss.stage_weights"),
    (["evaluation.tious=[]"], "evaluation.tious"),
    (["evaluation.tious=[0.5, 1.5]"], "evaluation.tious"),
    (["evaluation.tious=[0.5, 0.5]"], "evaluation.tious names a threshold twice"),
    (['data.classes=["run", "jump", "run"]'], "data.classes"),
    (["inference.mirror=true", "inference.nms=none"], "inference.nms"),
    (["train.seed=4294967296"], "train.seed"),
])
def test_each_rule_refuses_what_cannot_work(assignments, word):
    """A rule that is lost or inverted: the run would fail much later, or train something else."""
    with pytest.raises(UserError) as error:
        validate(apply_overrides(Config(), assignments))
    assert word in str(error.value)


def numbers():
    """Every option that is a number or a list of numbers, and a way to set it."""
    for group in dataclasses.fields(Config):
        for name, kind in typing.get_type_hints(group.type).items():
            if kind in (int, float) or kind == tuple[float, ...]:
                yield f"{group.name}.{name}", kind


@pytest.mark.parametrize(("name", "kind"), [*numbers()])
def test_no_number_goes_unchecked(name, kind):
    """An option whose negative or infinite value is taken and fails hours later, divides by zero, or silently trains
    something else; a new option that was given no range."""
    for bad in ("-1", "NaN", "Infinity"):
        with pytest.raises(UserError) as error:
            validate(apply_overrides(Config(), [f"{name}=[{bad}]" if kind not in (int, float) else f"{name}={bad}"]))
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [
    "model.num_heads", "train.accumulate", "model.soi_bins", "data.max_targets", "model.width_multiplier",
    "model.prior_prob", "inference.nms_sigma", "evaluation.tious", "synthetic.train_videos"])
def test_zero_is_refused_where_it_means_nothing(name):
    """Division by zero and empty arrays deep in the network."""
    with pytest.raises(UserError, match=name):
        validate(apply_overrides(Config(), [f"{name}={[0] if name.endswith('tious') else 0}"]))


@pytest.mark.parametrize("name", ["data.flip_prob", "model.dropout", "train.ema_decay", "inference.min_score",
                                  "model.bn_momentum", "data.shear_jitter", "model.prior_prob"])
def test_shares_end_at_one(name):
    """A percentage given for a share."""
    with pytest.raises(UserError, match=name):
        validate(apply_overrides(Config(), [f"{name}=50"]))


def test_validate_checks_types_of_configs_made_in_python():
    """dataclasses.replace checks nothing; a config file could hold a misspelt choice."""
    bad = dataclasses.replace(Config(), model=dataclasses.replace(Config().model, bn_mode="thawed"))
    with pytest.raises(UserError, match=r"model\.bn_mode"):
        validate(bad)


def test_round_trip_through_json():
    """A field that JSON changes (tuples to lists) and that does not come back equal."""
    overrides = ['model.streams=["rgb"]', "loss.stage_weights=[1,2,3,4]", "train.epochs=0.5", "model.remat=true"]
    config = apply_overrides(Config(), overrides)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_names_the_file():
    """An unknown field of a saved config is dropped silently."""
    with pytest.raises(UserError, match=r"run/config\.json: unknown option 'model\.depht'"):
        from_dict({"model": {"depht": 3}}, where="run/config.json")


def test_field_names_cover_every_field():
    """An option that cannot be set from the command line."""
    names = configs.field_names()
    assert len(names) == len(set(names)) == sum(len(fields) for fields in to_dict(Config()).values())
    assert "loss.iou" in names


def test_load_config_runs_overrides_and_validates(tmp_path):
    """A config file whose values or overrides are lost, or that is used although it cannot work."""
    path = tmp_path / "mine.py"
    path.write_text("from sptad_jax.config import Config, ModelConfig\n"
                    "def get_config():\n    return Config(model=ModelConfig(num_stages=2))\n")
    config = load_config(str(path), ["model.eta=4"])
    assert (config.model.num_stages, config.model.eta) == (2, 4)
    with pytest.raises(UserError, match=r"loss\.stage_weights"):
        load_config(str(path), ["loss.stage_weights=[1,1,1,1]"])


@pytest.mark.parametrize("text", ["", "get_config = 3\n"])
def test_load_config_needs_get_config(tmp_path, text):
    """A traceback for a file of another kind."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.py: the file must define get_config"):
        load_config(str(path))


@pytest.mark.parametrize("body", ["pass", "return {'model': {}}"])
def test_load_config_of_something_else(tmp_path, body):
    """A traceback where get_config forgets to return, or returns a dict."""
    (tmp_path / "mine.py").write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(UserError, match=r"mine\.py: get_config\(\) returns (NoneType|dict)"):
        load_config(str(tmp_path / "mine.py"))


def test_load_config_of_a_runs_json(tmp_path):
    """The file that every run holds: an assertion without a word."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(Config())))
    with pytest.raises(UserError, match=r"config\.json: give a Python file"):
        load_config(str(tmp_path / "config.json"))


def test_lists_and_whole_numbers_in_a_config_file(tmp_path):
    """Python's usual values where fields ask for tuples and floats: a traceback in a rule, or hours later."""
    (tmp_path / "mine.py").write_text(
        "from sptad_jax.config import *\n"
        "def get_config():\n"
        "    return Config(evaluation=EvaluationConfig(tious=[0.3, 1]), train=TrainConfig(lr_drop_epochs=12))\n")
    config = load_config(str(tmp_path / "mine.py"))
    assert config.evaluation.tious == (0.3, 1.0) and config.train.lr_drop_epochs == (12.0,)
    assert {type(x) for x in (*config.evaluation.tious, *config.train.lr_drop_epochs)} == {float}
    validate(dataclasses.replace(Config(), evaluation=configs.EvaluationConfig(tious=[0.3, 0.5])))


def test_load_config_of_no_file(tmp_path):
    """A traceback for a mistyped path."""
    with pytest.raises(UserError, match=r"absent\.py: no such file"):
        load_config(str(tmp_path / "absent.py"))
