"""What the commands for all kinds of videos share: find the files, make the dataset, say what it holds."""

import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from data_prep.builder import build_dataset, is_finished
from data_prep.decode import FrameSettings
from sptad_jax.data.annotations import Video
from sptad_jax.data.datasets import open_dataset
from sptad_jax.data.video import ENDINGS
from sptad_jax.errors import UserError
from sptad_jax.files import composed, files_below


def prepare_videos(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], videos: Sequence[Video], settings: FrameSettings, *,
    classes: Sequence[str], exceptions: Sequence[str], **options: Any,
) -> list[str]:
    """Makes a dataset folder out of the files of `videos`, sought below `folder`.

    A folder that is finished already is left as it is, also where the videos are gone by now; other annotations than
    those it was made from are refused. `folder` may be empty where settings.rgb_from names arrays. Other arguments,
    `options` among them, and the answer as data_prep.builder.build_dataset.
    """
    if not os.fspath(folder) and not settings.rgb_from:
        raise UserError("--videos is missing; name the folder of the video files, or that of AFSD's arrays by "
                        "--rgb-from.")
    target = pathlib.Path(output)
    fingerprint = hashlib.sha256(repr((list(videos), list(classes))).encode()).hexdigest()
    finished = is_finished(target, settings, fingerprint)
    if finished:
        print(f"{target} holds a finished dataset; delete the folder to prepare it anew.")
    paths = {} if finished or settings.rgb_from else find_videos(pathlib.Path(folder), videos)
    return build_dataset(target, videos, paths, settings, classes=classes, exceptions=exceptions,
                         fingerprint=fingerprint, **options)


def find_videos(folder: pathlib.Path, videos: Sequence[Video]) -> dict[str, pathlib.Path | None]:
    """The file of each video: NAME or v_NAME with one of `ENDINGS`, at any depth; None where there is none.

    Of several files the one with the shallower path wins, then the earlier of `ENDINGS`.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder.")
    files = [path for path in files_below(folder, ENDINGS) if path.is_file()]
    files.sort(key=lambda path: (len(path.parts), ENDINGS.index(path.suffix.lower()), os.fspath(path)), reverse=True)
    known: dict[str, pathlib.Path] = {}
    for path in files:  # later ones overwrite
        relative = path.relative_to(folder)
        for name in (path.name, path.stem, relative.as_posix(), relative.with_suffix("").as_posix()):
            known[composed(name)] = path
    names = {video.name: composed(video.name) for video in videos}
    return {name: known.get(sought, known.get(f"v_{sought}")) for name, sought in names.items()}


def print_outcome(output: str | os.PathLike[str], notes: Sequence[str]) -> None:
    """Notes to standard error, and the dataset's counts to standard output."""
    for sentence in notes:
        print(f"note: {sentence}", file=sys.stderr)
    dataset = open_dataset(output)
    for subset, counts in dataset.info["subsets"].items():
        rows = [video for video in dataset.videos if video.subset == subset]
        print(f"{subset}: {counts['num_videos']} videos, {sum(video.num_frames for video in rows)} frames, "
              f"{sum(len(video.annotations) for video in rows)} segments")
    print(f"{len(dataset.classes)} classes; ready for --set data.dataset_dir={output}")
