"""The command `sptad`: evaluate detections, detect actions in videos."""

import argparse
import pathlib
import sys

from sptad_jax.errors import UserError, report_errors

PRESETS = {"thumos14": (0.3, 0.4, 0.5, 0.6, 0.7), "activitynet13": tuple(0.5 + 0.05 * i for i in range(10))}

EVALUATE_HELP = """mAP of a detections file by the ActivityNet protocol.

  sptad evaluate --ground-truth gt.json --detections detections.json --subset test
  sptad evaluate --ground-truth gt.json --detections detections.json --preset activitynet13 --output results.json
"""
DETECT_HELP = """Finds actions in video files with a trained checkpoint.

  sptad detect my.mp4 --checkpoint runs/demo
  sptad detect a.mp4 b.mp4 --checkpoint runs/demo --output detections.json --report runs/demo/detections
"""


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sptad", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    evaluate = commands.add_parser("evaluate", description=EVALUATE_HELP, formatter_class=raw, help="mAP of detections")
    evaluate.add_argument("--ground-truth", required=True, metavar="GT.json")
    evaluate.add_argument("--detections", required=True, metavar="DET.json")
    evaluate.add_argument("--subset", help="subset of the ground truth; default: every video in it")
    evaluate.add_argument("--preset", choices=sorted(PRESETS), default="thumos14", help="tIoU thresholds")
    evaluate.add_argument("--tiou", help="thresholds instead of the preset's, e.g. 0.3,0.5,0.7")
    evaluate.add_argument("--protocol", choices=["activitynet"], default="activitynet")
    evaluate.add_argument("--output", metavar="results.json", help="write every figure, per class too")
    evaluate.set_defaults(run=_evaluate)

    detect = commands.add_parser("detect", description=DETECT_HELP, formatter_class=raw, help="actions in videos")
    detect.add_argument("videos", nargs="+", metavar="VIDEO")
    detect.add_argument("--checkpoint", required=True, metavar="DIR", help="work folder of a training")
    detect.add_argument("--output", metavar="DET.json", help="write all detections; default: print the best")
    detect.add_argument("--report", metavar="DIR", help="write a page with a time line of each video")
    detect.add_argument("--min-score", type=float, default=0.1, help="of printed detections (default 0.1)")
    detect.set_defaults(run=_detect)

    args = parser.parse_args(argv)
    return args.run(args)


def _evaluate(args: argparse.Namespace) -> int:
    from sptad_jax.evaluation import average_precision
    from sptad_jax.files import write_json

    ground_truth = average_precision.load_ground_truth(args.ground_truth)
    average_precision.read_ground_truth(ground_truth, args.subset, args.ground_truth)  # its errors name the file
    results = average_precision.evaluate(
        ground_truth,
        average_precision.load_detections(args.detections),
        _thresholds(args.tiou) if args.tiou else PRESETS[args.preset],
        subset=args.subset,
    )
    print(average_precision.format_row(results))
    if args.output:
        try:
            write_json(args.output, results)
        except OSError as error:
            raise UserError(f"--output {args.output}: cannot be written ({error.strerror}); choose another.") from None
    return 0


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise UserError(f"--tiou {text}: write thresholds in (0, 1] with commas, e.g. 0.3,0.5,0.7.")
    return values


def _detect(args: argparse.Namespace) -> int:
    from sptad_jax.data.video import read_frames_at
    from sptad_jax.inference.detect import detect_video, load_detector
    from sptad_jax.inference.postprocess import write_detections
    from sptad_jax.report.page import write_detection_report

    detector = load_detector(args.checkpoint)
    detections, durations, paths, failed = {}, {}, {}, 0
    for path in args.videos:
        name = pathlib.Path(path).stem
        if name in paths:  # another file of the same name in another folder
            name = path
        try:
            detections[name], durations[name] = detect_video(detector, path)
        except UserError as error:  # the other videos are still worth detecting in
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        paths[name] = path
        print(f"{path}  ({durations[name]:.1f} s)")
        for detection in detections[name]:
            if detection["score"] >= args.min_score:
                start, end = detection["segment"]
                print(f"  {start:8.2f} - {end:8.2f} s  {detection['score']:.3f}  {detection['label']}")
    if args.output:
        write_detections(pathlib.Path(args.output), detections)
    if args.report:
        page = write_detection_report(
            pathlib.Path(args.report), detections, list(detector.classes), durations=durations,
            frames_of=lambda name, times: read_frames_at(paths[name], times),
        )  # fmt: skip
        print(f"report: {page}")
    if failed:
        print(f"error: {failed} of {len(args.videos)} videos could not be read, see above.", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
