"""The command `sptad`: detect actions in videos, evaluate, look inside a detector, export it, study ablations."""

import argparse
import functools
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

from sptad_jax import __version__, launch
from sptad_jax.errors import UserError, report_errors
from sptad_jax.evaluation.thumos_official import TEST_SETS
from sptad_jax.files import local_path
from sptad_jax.inference import command

PRESETS = {"thumos14": (0.3, 0.4, 0.5, 0.6, 0.7), "activitynet13": tuple(0.5 + 0.05 * i for i in range(10))}

SHOWN_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "av",
                  "opencv-contrib-python-headless")  # fmt: skip

EVALUATE_HELP = """mAP of a detections file by the ActivityNet protocol, or by that of the THUMOS14 challenge.

  sptad evaluate --ground-truth gt.json --detections detections.json --subset test
  sptad evaluate --ground-truth gt.json --detections detections.json --preset activitynet13 --output results.json
  sptad evaluate --ground-truth gt.json --detections detections.json --subset test --test-set 210 --per-class
  sptad evaluate --ground-truth gt.json --detections detections.json --protocol thumos-official --tiou 0.1,0.3,0.5
  sptad evaluate --ground-truth gt.json --detections detections.json --preset activitynet13 --blocked blocked.json
  sptad evaluate --ground-truth gt.json --detections detections.json --subset test --analysis runs/analysis
"""
EXPORT_HELP = """Writes a trained detector for other programs: one file with weights, options and class names.

  sptad export --checkpoint runs/demo --output detector.safetensors
  sptad export --checkpoint runs/demo --output detector.zip --format stablehlo
  sptad export --checkpoint runs/demo --output detector.onnx --format onnx

A .safetensors file is read by `sptad detect --checkpoint` and by docs/torch_detector.py, a PyTorch network. The other
two are whole programs, which take arrays of frames; docs/serve.py answers requests with the first.
"""
INSPECT_HELP = """Shows what a trained detector consists of, and where its proposals look.

  sptad inspect runs/demo
  sptad inspect detector.safetensors --report inside
  sptad inspect runs/demo --report inside --video my.mp4

Prints every part with its output, parameters and operations (counted in the program) for one window.
"""
STUDY_HELP = """Trains the rows of tables of ablations one after another, and sets them beside the paper's figures.

  sptad study --base demo --tables 4,5,6,7,8 --seeds 3 --workdir runs/study
  sptad study --base thumos14 --tables choices --workdir runs/choices --set data.dataset_dir=data/thumos14
  sptad study --base demo --tables 4,5,6,7,8 --seeds 3 --workdir runs/study --tables-only

Start it in the root of a checkout, where train.py and configs/ are, and one study a work folder at a time. Run again,
it skips what is finished and resumes what was interrupted. The tables, in study.md, study.json and table_NAME.svg, are
written anew after each run.
"""


class _Version(argparse.Action):
    """Prints what a report of a fault needs, and exits; loads nothing before it is asked."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"sptad_jax {__version__}", *(f"{name} {_installed(name)}" for name in SHOWN_PACKAGES), sep="\n")
        parser.exit()


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = _make_parser().parse_args(argv)
    return args.run(args)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sptad", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    parser.add_argument("--version", action=_Version, help="print the version, and those of what results depend on")
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    evaluate = commands.add_parser("evaluate", description=EVALUATE_HELP, formatter_class=raw, help="mAP of detections")
    evaluate.add_argument("--ground-truth", required=True, metavar="GT.json")
    evaluate.add_argument("--detections", required=True, metavar="DET.json")
    evaluate.add_argument("--subset", help="subset of the ground truth; default: every video in it")
    evaluate.add_argument("--preset", choices=sorted(PRESETS), default="thumos14", help="tIoU thresholds")
    evaluate.add_argument("--tiou", help="thresholds instead of the preset's, e.g. 0.3,0.5,0.7")
    evaluate.add_argument("--protocol", choices=["activitynet", "thumos-official"], default="activitynet")
    evaluate.add_argument("--official-order", action="store_true",
                          help="break ties as ActivityNet's script does, not by file order")  # fmt: skip
    evaluate.add_argument("--test-set", type=int, choices=sorted(TEST_SETS),
                          help="THUMOS14: the test videos that others use, by their number")  # fmt: skip
    evaluate.add_argument("--blocked", metavar="NAMES.json", help="JSON list of videos to leave out")
    evaluate.add_argument("--per-class", action="store_true", help="print AP of every class too")
    evaluate.add_argument("--output", type=local_path, metavar="results.json", help="write every figure, per class too")
    evaluate.add_argument("--analysis", type=local_path, metavar="DIR",
                          help="write what goes wrong and why: analysis.json and a page with its plots")  # fmt: skip
    evaluate.set_defaults(run=_evaluate)

    detect = commands.add_parser("detect", description=command.HELP, formatter_class=raw, help="actions in videos")
    command.add_arguments(detect)
    detect.set_defaults(run=command.run)

    export = commands.add_parser("export", description=EXPORT_HELP, formatter_class=raw, help="for other programs")
    export.add_argument("--checkpoint", required=True, metavar="DIR", help="work folder of a training, or .safetensors")
    export.add_argument("--format", choices=["torch-state-dict", "stablehlo", "onnx"], default="torch-state-dict",
                        help="PyTorch's names and layouts in safetensors (the default); a program for JAX on any "
                        "platform; or one for ONNX")  # fmt: skip
    export.add_argument("--dtype", choices=["float32", "float16"], default="float32",
                        help="of a state dict; float16 halves the file (default %(default)s)")  # fmt: skip
    export.add_argument("--output", type=local_path, required=True, metavar="FILE",
                        help="ends in .safetensors, .zip, or .onnx")  # fmt: skip
    export.set_defaults(run=_export)

    inspect = commands.add_parser("inspect", description=INSPECT_HELP, formatter_class=raw, help="a detector's parts")
    inspect.add_argument("checkpoint", metavar="CHECKPOINT",
                         help="work folder of a training, or an exported .safetensors")  # fmt: skip
    inspect.add_argument("--report", type=local_path, metavar="DIR",
                         help="write a page with the table and the proposals drawn")  # fmt: skip
    inspect.add_argument("--video", metavar="VIDEO", help="draw on the page how each stage moves them on this video")
    inspect.set_defaults(run=_inspect)

    study = commands.add_parser("study", description=STUDY_HELP, formatter_class=raw, help="tables of ablations")
    study.add_argument("--base", required=True, metavar="CONFIG", help="name of a file in configs/, or a path")
    study.add_argument("--workdir", required=True, metavar="DIR", help="folder of the tables and of all runs")
    study.add_argument("--tables", default="4,5,6,7,8",
                       help="of the paper, and `choices` that it leaves open (default %(default)s)")  # fmt: skip
    study.add_argument("--seeds", type=int, default=1, help="runs of each row (default 1)")
    study.add_argument("--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="change the base")
    study.add_argument("--tables-only", action="store_true", help="train nothing, write the tables as far as they go")
    study.add_argument("--train-script", default="train.py", help="what trains (default ./train.py)")
    study.add_argument("--ablations", default="configs/ablations.py", help="file of the tables (default ./%(default)s)")
    study.set_defaults(run=_study)

    for one in commands.choices.values():  # where people write it: at the end of the line
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    from sptad_jax.evaluation import average_precision, thumos_official
    from sptad_jax.files import write_json

    ground_truth, detections = _load(args)
    thresholds = _thresholds(args.tiou) if args.tiou else PRESETS[args.preset]
    if args.protocol == "thumos-official":
        if args.official_order:
            raise UserError("--official-order belongs to --protocol activitynet; leave it out.")
        results = thumos_official.evaluate(ground_truth, detections, thresholds, args.subset)
    else:
        results = average_precision.evaluate(
            ground_truth, detections, thresholds, args.subset, official_order=args.official_order
        )
    print(average_precision.format_row(results, args.per_class))
    if args.output:
        try:
            write_json(args.output, results)
        except OSError as error:
            raise UserError(f"--output {args.output}: cannot be written ({error.strerror}); choose another.") from None
    if args.analysis:
        _analyse(pathlib.Path(args.analysis), ground_truth, detections, thresholds, args.subset)
    return 0


def _analyse(
    folder: pathlib.Path, ground_truth: dict[str, Any], detections: dict[str, Any], thresholds: tuple[float, ...],
    subset: str | None,
) -> None:  # fmt: skip
    from sptad_jax.evaluation.analysis import analyse
    from sptad_jax.files import write_json
    from sptad_jax.report.page import write_analysis_report

    analysis = analyse(ground_truth, detections, thresholds, subset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "analysis.json", analysis)
        print(f"analysis: {write_analysis_report(folder, analysis)}")
    except OSError as error:
        raise UserError(f"--analysis {folder}: cannot be written ({error.strerror}); choose another folder.") from None


def _load(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections without the videos that --test-set and --blocked leave out."""
    from sptad_jax.evaluation import files

    ground_truth, detections = files.load_ground_truth(args.ground_truth), files.load_detections(args.detections)
    names = set(TEST_SETS[args.test_set]) if args.test_set else set()
    ground_truth = files.leave_out(ground_truth, "database", names)
    videos, _ = files.read_ground_truth(ground_truth, args.subset, args.ground_truth)  # its errors name the file
    if args.test_set and len(videos) != args.test_set:
        raise UserError(
            f"--test-set {args.test_set}: {args.ground_truth} has {len(videos)} videos to evaluate on in subset "
            f"'{args.subset or 'all'}', not {args.test_set}; give --subset, another ground truth, or no --test-set."
        )
    if args.blocked:
        blocked = set(files.load_names(args.blocked))
        print(f"left out: {len(blocked.intersection(videos))} of {len(videos)} videos")
        names |= blocked
    return files.leave_out(ground_truth, "database", names), files.leave_out(detections, "results", names)


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise UserError(f"--tiou {text}: write thresholds in (0, 1] with commas, e.g. 0.3,0.5,0.7.")
    return values


def _export(args: argparse.Namespace) -> int:
    from sptad_jax.inference import export, programs

    if args.dtype != "float32" and args.format != "torch-state-dict":
        raise UserError(f"--dtype {args.dtype}: a program computes in float32; leave it out, or take torch-state-dict.")
    writers: dict[str, Callable[..., None]] = {
        "torch-state-dict": functools.partial(export.write_safetensors, dtype=args.dtype),
        "stablehlo": programs.write_stablehlo,
        "onnx": programs.write_onnx,
    }
    variables, meta = export.read_detector(args.checkpoint)
    writers[args.format](args.output, variables, meta)
    print(f"{args.output}: step {meta['step']}, {len(meta['classes'])} classes")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from sptad_jax import load
    from sptad_jax.inference.outputs import check_folder

    if args.video and not args.report:
        raise UserError("--video is drawn on the page; give --report DIR as well.")
    if args.report:
        check_folder(pathlib.Path(args.report), f"--report {args.report}")
    detector = load(args.checkpoint)
    from sptad_jax.inference import inspect

    facts = inspect.list_facts(detector, args.checkpoint)
    parts = inspect.describe(detector.config, len(detector.classes))
    print("\n".join(f"{name:<11} {value}" for name, value in facts.items()), inspect.format_parts(parts), sep="\n\n")
    if not args.report:
        return 0
    from sptad_jax.report.proposals import write_inspection_report

    tracks = None
    if args.video:
        from sptad_jax.data.video import stated_duration

        name = command.printable(pathlib.Path(args.video).name)
        with command.show_progress(name, stated_duration(args.video)) as on_progress:
            tracks = inspect.follow(detector, args.video, on_progress)
    steps = inspect.level_steps(parts)
    page = write_inspection_report(
        args.report, facts, parts, steps, inspect.initial_proposals(detector, len(steps)), tracks,
        [command.printable(name) for name in detector.classes], command.printable(pathlib.Path(args.video or "").name),
    )  # fmt: skip
    print(f"\nreport: {page}")
    return 0


def _study(args: argparse.Namespace) -> int:
    from sptad_jax.files import to_path
    from sptad_jax.study import run_study

    workdir = to_path(args.workdir, "--workdir")
    if not isinstance(workdir, pathlib.Path):
        raise UserError(f"--workdir {workdir}: a study reads the logs of its runs from a disk; give a folder.")
    return run_study(
        args.base, args.tables.split(","), workdir, args.set, args.seeds,
        train_script=pathlib.Path(args.train_script), ablations=pathlib.Path(args.ablations),
        tables_only=args.tables_only,
    )  # fmt: skip


def program() -> None:
    """The command, as a program of its own."""
    launch.leave(main)


if __name__ == "__main__":
    program()
