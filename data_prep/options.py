"""The options that say how frames are made, shared by the commands that prepare a dataset."""

import argparse
import os
import shlex
from typing import Any

from data_prep.decode import FrameSettings
from sptad_jax.errors import UserError


def add_frame_options(parser: argparse.ArgumentParser, *, max_frames: int = 0) -> None:
    """Adds --fps to --processes, the sources of frames and flow, those of Beam, --allow-missing and --debug.

    `max_frames` is the default of --max-frames.
    """
    default = FrameSettings(max_frames=max_frames)
    no_limit = ": no limit" if not max_frames else ""
    parser.add_argument("--fps", type=float, default=default.fps, help="stored frames per second (default 10)")
    parser.add_argument("--max-frames", type=int, default=max_frames,
                        help="frames of a video at most, at a lower rate where needed; 768 for ActivityNet, 0: no "
                             f"limit (default {max_frames}{no_limit})")
    parser.add_argument("--frame-size", type=int, default=default.frame_size,
                        help="pixels of either side (default 112)")
    parser.add_argument("--fit", choices=["stretch", "crop", "motion"], default=default.fit,
                        help="how a picture becomes a square: stretch shows all of it out of shape, as in AFSD; crop "
                             "keeps its shape and shows the central square, larger; motion shows the square in which "
                             "something moves, for people who are small in the picture (default stretch)")
    parser.add_argument("--flow", choices=["tvl1", "tvl1_jax", "dis", "none"], default=default.flow,
                        help="optical flow: tvl1 as in the paper, tvl1_jax the same in JAX and faster, dis a hundred "
                             "times faster, or none (default tvl1)")
    parser.add_argument("--bound", type=float, default=default.bound, help="largest flow in pixels (default 20)")
    parser.add_argument("--flow-size", type=int, default=0,
                        help="pixels of either side on which flow is computed before it is averaged down to the frame "
                             "size; helps small frames (default 0: the frame size)")
    parser.add_argument("--rgb-from", default="", metavar="DIR",
                        help="take the frames from arrays NAME.npy, uint8 [T, H, W, 3] at --fps frames a second, as "
                             "AFSD makes them, instead of decoding videos")
    parser.add_argument("--flow-from", default="", metavar="DIR",
                        help="take the flow from arrays NAME.npy, uint8 [T, H, W, 2], as AFSD makes them, or from "
                             "folders NAME of denseflow's pictures, instead of computing it; --flow and --bound say "
                             "how it was made")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--beam-runner", default="", metavar="NAME",
                        help="spread the work over machines by Apache Beam, e.g. FlinkRunner, see docs/datasets.md; "
                             "needs the extra [beam], and --processes has no effect")
    parser.add_argument("--beam-options", default="", metavar="'--A=B ...'",
                        help="options of Beam's pipelines, in one pair of quotes")
    parser.add_argument("--allow-missing", action="store_true", help="leave out videos that are missing or broken")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def read_frame_options(args: argparse.Namespace) -> FrameSettings:
    """The settings that the options ask for. Raises UserError for values that make no sense."""
    if not 0 < args.fps < float("inf") or not 0 < args.bound < float("inf") or args.frame_size < 16 \
            or args.processes < 1 or args.max_frames < 0:
        raise UserError("--fps, --bound and --processes must be positive, --max-frames not negative, and --frame-size "
                        "at least 16.")
    if args.flow_size < 0 or 0 < args.flow_size < args.frame_size:
        raise UserError(f"--flow-size {args.flow_size} is below --frame-size {args.frame_size}; raise it, or leave it.")
    if args.flow_from and args.flow == "none":
        raise UserError("--flow-from gives flow, but --flow none leaves flow out; name the method by which the flow "
                        "was made with --flow, tvl1 for AFSD and denseflow, or leave out --flow-from.")
    if args.fit != "stretch" and (args.rgb_from or args.flow_from):
        raise UserError(f"--fit {args.fit} is for videos that are decoded here; leave it out beside --rgb-from and "
                        "--flow-from.")
    if args.flow_from and args.flow_size:
        raise UserError("--flow-size is for flow that is computed here; leave it out beside --flow-from.")
    return FrameSettings(
        fps=args.fps, max_frames=args.max_frames, frame_size=args.frame_size, fit=args.fit, flow=args.flow,
        bound=args.bound, flow_size=args.flow_size, rgb_from=args.rgb_from, flow_from=args.flow_from)


def read_work_options(args: argparse.Namespace) -> dict[str, Any]:
    """How the work is done, as keyword arguments of data_prep.builder.build_dataset."""
    if args.beam_options and not args.beam_runner:
        raise UserError("--beam-options has no effect without --beam-runner; name the runner, or leave them out.")
    return {"processes": args.processes, "allow_missing": args.allow_missing, "beam_runner": args.beam_runner,
            "beam_options": shlex.split(args.beam_options)}
