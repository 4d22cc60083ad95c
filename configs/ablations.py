"""Ablations of a base config: Tables 4 to 8 of the paper (4.4), and choices that it leaves open.

    sptad study --base demo --tables 4,5,6,7,8 --seeds 3 --workdir runs/study_demo --set inference.vote=false
    sptad study --base thumos14 --tables 4,8,choices --seeds 1 --workdir runs/study --set data.dataset_dir=data/thumos14

Hardware and time: as many runs of the base as the study prints at its start; rows that come to the same options share
one. The figures are the paper's, on THUMOS14's test videos; docs/study.md has a small study of the demo.
"""

from sptad_jax.config import Config, apply_overrides
from sptad_jax.study import Row, Table

PAPER_BEST = (69.2, 63.3, 55.9, 45.7, 33.4, 53.5)  # the last row of Table 1, and one row of each of Tables 4 to 8
CHOICES = {
    "level": ("model.level_rule", ("floor", "round", "ceil", "expanded")),
    "initial segments": ("model.proposal_init", ("image", "random", "grid", "centre")),
    "SoI bins T'": ("model.soi_bins", (8, 16, 32)),
    "eta": ("model.eta", (2.5, 5.0, 10.0)),
    "SoI Align": ("model.soi_align", ("aligned", "legacy")),
    "fusion": ("model.fusion", ("early", "late")),
    "streams": ("model.streams", ('["rgb"]', '["flow"]')),
    "class and clip probability": ("inference.combine", ("product", "none")),  # the other reading of Table 7, without
}


def get_tables(base: Config) -> dict[str, Table]:
    """Every table by the name that `sptad study --tables` takes; rows in the paper's order."""
    return {
        "4": Table("Learning rate of the backbone, times that of the other parts (the paper: 0, 1e-6, 1e-5, 1e-4)",
                   "Table 4, section 4.4.1", (
            Row("0", ("train.backbone_lr_multiplier=0",), (65.1, 58.3, 49.5, 39.1, 27.6, 48.0)),
            Row("0.01", ("train.backbone_lr_multiplier=0.01",), (65.4, 59.6, 51.0, 40.1, 28.6, 48.9)),
            Row("0.1", ("train.backbone_lr_multiplier=0.1",), (67.2, 62.1, 51.8, 42.1, 29.7, 50.6)),
            Row("1", ("train.backbone_lr_multiplier=1",), PAPER_BEST),
        )),
        "5": Table("Temporal feature pyramid", "Table 5, section 4.4.2", (
            Row("Single Level", ("model.pyramid=single",), (67.5, 61.2, 52.7, 41.8, 29.4, 50.2)),
            Row("High Level TFP", ("model.pyramid=high",), (65.8, 59.9, 51.5, 40.0, 28.1, 49.0)),
            Row("Inter Level TFP", ("model.pyramid=inter",), PAPER_BEST),
        )),
        "6": Table("Number of stages (stacked action detection heads)", "Table 6, section 4.4.3", (
            Row("1", ("model.num_stages=1",), (60.1, 54.4, 45.7, 34.7, 23.1, 43.6)),
            Row("2", ("model.num_stages=2",), (66.0, 59.4, 55.5, 41.1, 30.0, 49.6)),
            Row("4", ("model.num_stages=4",), PAPER_BEST),
            Row("6", ("model.num_stages=6",), (65.4, 59.4, 52.1, 42.3, 30.4, 49.9)),
        )),
        "7": Table("Action classification head, whose clip probability multiplies the class probability",
                   "Table 7, section 4.4.4", (
            Row("without", ("model.clip_head=false",), (67.2, 61.6, 54.7, 44.3, 32.6, 52.1)),
            Row("with", ("model.clip_head=true", "inference.combine=product"), PAPER_BEST),
        )),
        "8": Table("Frames of a window (the paper: 224, 256, 288, 320); test windows overlap by half",
                   "Table 8, section 4.4.5", (
            _window(base, 224, (68.5, 62.6, 55.0, 43.6, 31.7, 53.3)),
            _window(base, 256, PAPER_BEST),
            _window(base, 288, (68.3, 62.4, 54.4, 43.7, 31.6, 51.3)),
            _window(base, 320, (67.2, 62.1, 53.4, 43.1, 30.7, 49.9)),
        )),
        "choices": Table("What the paper leaves open, one change at a time", "docs/choices.md", _choices(base)),
    }  # fmt: skip


def _window(base: Config, paper_frames: int, paper: tuple[float, ...]) -> Row:
    """The paper's window as a share of its 256 frames, in frames of the base: on a multiple of 16, the coarsest stride.

    The stride of training windows stays, as docs/choices.md says.
    """
    frames = 16 * max(1, round(base.data.num_frames * paper_frames / 256 / 16))
    return Row(str(frames), (f"data.num_frames={frames}", f"data.stride_test={frames // 2}"), paper)


def _choices(base: Config) -> tuple[Row, ...]:
    """The base, then each alternative that is not the base's own value; of streams only where the base has both."""
    rows = [Row(f"{choice}: {value}".replace('["', "").replace('"]', " only"), (f"{option}={value}",))
            for choice, (option, values) in CHOICES.items() for value in values
            if len(base.model.streams) == 2 or choice not in ("fusion", "streams")]  # fmt: skip
    return Row("base", ()), *(row for row in rows if apply_overrides(base, row.changes) != base)
