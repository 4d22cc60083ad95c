"""The profile of a training step: that every part is found, and that no time is counted twice."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import step_profile
from sptad_jax.config import load_config
from sptad_jax.training import step

TINY = ["data.num_frames=16", "data.stride_test=16", "data.crop_size=32", "train.batch_size=1",
        "model.width_multiplier=0.0625", "model.hidden_dim=16", "model.num_heads=2", "model.dynamic_dim=4",
        "model.ffn_dim=16", "model.num_stages=1", 'model.streams=["rgb"]', "model.conv_mode=direct"]
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def test_every_part_is_found(monkeypatch):
    """Catches a scope that was renamed in the network or the step, whose time would then stand under another name."""
    monkeypatch.setattr(step, "fit_to_device", lambda config: (config, FAST))
    seconds, scopes = step_profile.profile_step(load_config("configs/custom.py", TINY), steps=1)
    parts = step_profile.sum_parts(seconds, scopes)
    assert step_profile.PARTS.keys() - parts.keys() <= {"rest of the backbones", "rest of the detection head"}
    assert sum(parts.values()) == pytest.approx(sum(seconds.values()))


def test_an_operation_without_a_name_counts_to_what_it_reads():
    """Catches products for YNNPACK, a third of a step, in no scope; names of arguments, which are no scopes."""
    program = """
  %p.1 = f32[8,50]{1,0} parameter(0), metadata={op_name="state.params['a']"}
  %pad.2 = (f32[9,50]{1,0}, f32[]) fusion(%p.1), kind=kLoop, calls=%c.1, metadata={op_name="jit(f)/a/Mixed_3b/pad"}
  %ynn_fusion.3 = f32[8,50]{1,0} fusion(%p.1, %pad.2), kind=kCustom, calls=%c.2
  ROOT %copy.4 = f32[8,50]{1,0} copy(%ynn_fusion.3)
  %log.5 = f32[] log(%p.1)
  %iota.6 = s32[8]{0} iota(), iota_dimension=0, metadata={op_name="jit(f)/a/iota"}
"""
    scope = "jit(f)/a/Mixed_3b/pad"
    assert step_profile.read_scopes(program) == {"pad.2": scope, "ynn_fusion.3": scope, "copy.4": scope, "log.5": "",
                                                 "iota.6": "jit(f)/a/iota"}  # fmt: skip


def test_onednn_calls_count_to_the_operation_of_the_program():
    """Catches time of a library's calls that stands under names which the program does not know, and host threads
    counted beside a device's own line."""
    def event(start, end, name):
        return SimpleNamespace(start_ns=start, duration_ns=end - start, stats=[("hlo_op", name)] if name else [])

    def plane(name, **lines):
        lines = [SimpleNamespace(name=line, events=events) for line, events in lines.items()]
        return SimpleNamespace(name=name, lines=lines)

    rows = [event(0, 10, "conv.3"), event(2, 6, "conv.3__onednn$conv"), event(10, 13, "fusion"), event(20, 30, None)]
    more = [event(0, 4, "conv.3__onednn$conv")]
    cpu = step_profile.sum_operations(SimpleNamespace(planes=[plane("/host:CPU", one=rows, two=more)]))
    assert cpu == pytest.approx({"conv.3": 14e-9, "fusion": 3e-9})
    gpu = plane("/device:GPU:0", **{"XLA Ops": rows, "Steps": more})
    both = step_profile.sum_operations(SimpleNamespace(planes=[plane("/host:CPU", one=more), gpu]))
    assert both == pytest.approx({"conv.3": 10e-9, "fusion": 3e-9})


@given(st.recursive(st.just([]), lambda children: st.lists(st.tuples(st.integers(0, 2), children), max_size=3),
                    max_leaves=12))
def test_time_within_another_operation_counts_once(tree):
    """Against a count of units of time, each of which belongs to the innermost operation that is running."""
    events, owner = [], {}

    def lay_out(children, start, depth):
        end = start
        for gap, inner in children:
            begin = end + gap
            end = lay_out(inner, begin, depth + 1) + 1
            name = len(events)
            events.append((begin, end, name))
            for unit in range(begin, end):
                if unit not in owner or owner[unit][0] < depth:
                    owner[unit] = (depth, name)
        return end

    lay_out(tree, 0, 0)
    found = dict(step_profile.own_times(events))
    for name in found:
        assert found[name] == sum(1 for _, innermost in owner.values() if innermost == name)
