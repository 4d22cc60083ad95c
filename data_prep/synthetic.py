"""Renders untrimmed synthetic videos with exact segments: H.264 files and an ActivityNet-format annotation file.

    python -m data_prep.synthetic --output runs/synthetic --train-videos 96 --test-videos 24

A textured actor (two in about a third of the videos) idles, acts and idles again before a panning background, beside
distractors that move but never act, under camera shake, flicker and noise. Looks are drawn independently of classes,
so nothing but motion tells what happens; see data_prep/synthetic_actions.py for the classes. Layout of the output:

    videos/synthetic_train_0000.mp4 ...   settings.json   annotations.json

Pictures are the same for the same seed, subset and number, on x86 processors the files too. A second run with the
same options renders only what is missing. Mirrored, some classes become others: train on these
videos with `data.flip_prob = 0`.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import zlib

import numpy as np
import tqdm

from data_prep.synthetic_actions import plan_lanes
from data_prep.synthetic_scene import Plan, Settings, build_scene, render_frame
from sptad_jax.data.video import write_video
from sptad_jax.errors import UserError, report_errors
from sptad_jax.files import local_path, write_json

RENDERER = 3  # part of settings.json: raise it when the same settings begin to give other pictures


def plan_video(settings: Settings, subset: str, index: int) -> Plan:
    """The timeline of video number `index` of a subset; the same for the same three arguments, on any machine."""
    seed = (settings.seed, zlib.crc32(subset.encode()), index)
    lanes, duration_sec = plan_lanes(np.random.default_rng([*seed, 0]), settings.min_sec, settings.max_sec)
    return Plan(f"synthetic_{subset}_{index:04d}", subset, seed, math.ceil(duration_sec * settings.fps), lanes)


def render_file(path: pathlib.Path, plan: Plan, settings: Settings) -> None:
    """Draws and encodes one video; the file appears whole or not at all."""
    scene = build_scene(plan, settings)
    write_video(path, (render_frame(scene, i) for i in range(plan.num_frames)), settings.fps, settings.crf)


def list_plans(settings: Settings, num_videos: dict[str, int]) -> list[Plan]:
    """The plans of all videos, subset by subset."""
    return [plan_video(settings, subset, i) for subset, count in num_videos.items() for i in range(count)]


def annotate(plans: list[Plan], settings: Settings) -> dict:
    """ActivityNet-format annotations of the plans, instances in order of time."""
    database = {}
    for plan in plans:
        instances = sorted((x for lane in plan.lanes for x in lane), key=lambda x: (x.start_sec, x.end_sec))
        database[plan.name] = {
            "subset": plan.subset,
            "duration": plan.num_frames / settings.fps,
            "resolution": f"{settings.size}x{settings.size}",
            "fps": settings.fps,
            "annotations": [{"segment": [round(x.start_sec, 3), round(x.end_sec, 3)], "label": x.label}
                            for x in instances],
        }
    return {"version": f"synthetic-{RENDERER}", "taxonomy": [], "database": database}


def render_dataset(output: str | os.PathLike[str], train_videos: int = 96, test_videos: int = 24,
                   settings: Settings = Settings(), processes: int = 2) -> pathlib.Path:  # noqa: B008 (frozen)
    """Renders the videos that are missing from `output`, then writes `output`/annotations.json.

    Args:
        output: folder, made where absent.
        train_videos, test_videos: how many of each subset ("train", "test"); the two are drawn from different seeds.
        settings: see `Settings`.
        processes: how many render at once; 1 renders in this process.

    Returns: the path of annotations.json, which is written last: where it exists, all its videos do.
    Raises: UserError for settings that cannot work, or where the folder holds videos of other settings.
    """
    _check(settings, train_videos, test_videos, processes)
    root = pathlib.Path(output)
    videos = root / "videos"
    try:
        videos.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made ({error.strerror}); name a folder you may write to."
                        ) from None
    _claim(root, settings)
    plans = list_plans(settings, {"train": train_videos, "test": test_videos})
    wanted = [(videos / f"{plan.name}.mp4", plan) for plan in plans]
    missing = [(path, plan) for path, plan in wanted if not path.exists()]
    progress = tqdm.tqdm(total=len(plans), initial=len(plans) - len(missing), desc="render", unit="video", disable=None)
    with progress:
        if processes == 1:
            for path, plan in missing:
                render_file(path, plan, settings)
                progress.update()
        elif missing:
            context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries half-way
            with concurrent.futures.ProcessPoolExecutor(min(processes, len(missing)), mp_context=context) as pool:
                futures = [pool.submit(render_file, path, plan, settings) for path, plan in missing]
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    progress.update()
    write_json(root / "annotations.json", annotate(plans, settings))
    return root / "annotations.json"


def _check(settings: Settings, train_videos: int, test_videos: int, processes: int) -> None:
    rules = [
        (settings.size >= 16 and settings.size % 2 == 0, "--size must be an even number of at least 16 pixels"),
        (1 <= settings.fps <= 120, "--fps must lie in 1 to 120"),
        (0 < settings.min_sec <= settings.max_sec, "--min-sec must be positive and not above --max-sec"),
        (0 <= settings.crf <= 51, "--crf must lie in 0 to 51"),
        (settings.seed >= 0, "--seed must not be negative"),
        (min(train_videos, test_videos) >= 0 and train_videos + test_videos > 0,
         "--train-videos and --test-videos must not be negative, and one must be positive"),
        (processes >= 1, "--processes must be at least 1"),
    ]
    for holds, sentence in rules:
        if not holds:
            raise UserError(f"{sentence}; see --help.")


def _claim(root: pathlib.Path, settings: Settings) -> None:
    """Leaves the settings in the folder, or refuses a folder that was rendered with others."""
    path, mine = root / "settings.json", {"renderer": RENDERER, **dataclasses.asdict(settings)}
    if not path.exists():
        if any((root / "videos").iterdir()):
            raise UserError(f"{root / 'videos'}: holds files that were not rendered here; choose another --output.")
        write_json(path, mine)
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: is not JSON; delete the folder, or choose another --output.") from None
    if theirs != mine:
        raise UserError(f"{path}: the folder was rendered with other settings, {theirs}; give the same options, or "
                        "choose another --output.")



@report_errors
def main(argv: list[str] | None = None) -> int:
    """Command line of `render_dataset`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.synthetic", description="Render untrimmed synthetic videos with exact segments.",
        epilog="Example: python -m data_prep.synthetic --output runs/synthetic --train-videos 96 --test-videos 24",
    )
    parser.add_argument("--output", type=local_path, required=True, help="folder for videos/ and annotations.json")
    parser.add_argument("--train-videos", type=int, default=96)
    parser.add_argument("--test-videos", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2, help="videos rendered at once (default 2)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    helps = {"seed": "of all that is random", "size": "width and height in pixels", "fps": "frames a second",
             "min_sec": "shortest video in seconds", "max_sec": "longest video, unless its actions need more",
             "crf": "quality of libx264, 0 (lossless) to 51"}
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default,
                            help=f"{helps[field.name]} (default {field.default})")
    args = parser.parse_args(argv)
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    path = render_dataset(args.output, args.train_videos, args.test_videos, settings, args.processes)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
