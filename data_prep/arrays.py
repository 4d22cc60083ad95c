"""Frames and flow that other tools made: AFSD's arrays, and denseflow's pictures.

AFSD writes an array for each video, NAME.npy: frames uint8 [T, H, W, 3] RGB, flow uint8 [T, H, W, 2], x before y
(AFSD/common/video2npy.py, gen_denseflow_npy.py:88-105). denseflow writes grey pictures NAME/flow_x_00000.jpg and
NAME/flow_y_00000.jpg, or with an older version counted from 1, one pair for each frame but the last.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from sptad_jax.data.pictures import resize_image
from sptad_jax.errors import UserError

RATE_TOLERANCE = 0.1  # share of a stated duration by which arrays at the given rate may miss it
_PICTURE = re.compile(r"(?P<number>\d+)\.(jpe?g|png)", re.IGNORECASE)


class ArrayReader:
    """Iterates over the frames of an array as `sptad_jax.data.video.FrameReader` does over those of a video.

    Args:
      path: .npy file, uint8 [T, H, W, 3].
      fps: frames per second of the array.
      size: pixels of either side to bring frames to.
      max_frames: where positive, the array is a whole video of at most this many frames, at whatever rate.
      stated_sec: the video's duration in the annotations; 0 where unknown.

    Raises UserError for a file that is no such array, or whose length and rate cannot be.
    """

    def __init__(self, path: pathlib.Path, fps: float, size: int, max_frames: int = 0, stated_sec: float = 0.0) -> None:
        self.size = size
        self.array = open_array(path, 3)
        self.source_frames = len(self.array)
        if max_frames and self.source_frames > max_frames:
            raise UserError(f"{path}: holds {self.source_frames} frames, more than --max-frames {max_frames}; raise "
                            "that, or make the array anew with fewer.")
        if max_frames and not stated_sec:
            raise UserError(f"{path}: its rate follows from the video's duration, which the annotations do not state; "
                            "add it there, or leave out --max-frames.")
        self.fps = self.source_frames / stated_sec if max_frames else fps
        self.duration_sec = self.source_frames / self.fps
        if stated_sec and abs(self.duration_sec - stated_sec) > RATE_TOLERANCE * stated_sec + 1 / self.fps:
            raise UserError(f"{path}: {self.source_frames} frames at {fps:g} a second are {self.duration_sec:.1f} s, "
                            f"but the annotations state {stated_sec:.1f} s; give the rate of the arrays as --fps.")

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self.array:
            yield resize_image(np.asarray(frame), self.size, self.size)


class FlowReader:
    """Fields of flow by index: an array .npy, uint8 [T, H, W, 2], or a folder of denseflow's pictures.

    Where the size differs, fields are resized and, like flow that is computed here on larger frames, measured in pixels
    of the new size. Raises UserError for what cannot be read.
    """

    def __init__(self, path: pathlib.Path, size: int) -> None:
        self.path, self.size = path, size
        self.pictures = _list_pictures(path) if path.is_dir() else None
        self.array = None if self.pictures else open_array(path, 2)
        self.shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.array if self.array is not None else self.pictures or ())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Fields start..stop-1, uint8 [stop - start, size, size, 2]; after the end the last one is repeated."""
        last = len(self) - 1
        fields = {i: self._read_field(i) for i in {min(i, last) for i in range(start, stop)}}
        return np.stack([fields[min(i, last)] for i in range(start, stop)])

    def check_length(self, num_frames: int) -> None:
        """Raises UserError unless there are as many fields as frames, or one more or less."""
        if abs(len(self) - num_frames) > 1:
            raise UserError(f"{self.path}: holds flow for {len(self)} frames, but the video has {num_frames}; make the "
                            "flow from frames at the same rate, --fps.")

    def _read_field(self, index: int) -> np.ndarray:
        if self.pictures is None:
            assert self.array is not None
            return _fit(np.asarray(self.array[index]), self.size)
        axes = []
        for path in self.pictures[index]:
            axis = cv2.imread(os.fspath(path), cv2.IMREAD_GRAYSCALE)
            if axis is None:
                raise UserError(f"{path}: cannot be read as a picture; make the flow of this video anew.")
            self.shape = self.shape or axis.shape
            if axis.shape != self.shape:
                raise UserError(f"{path}: is {axis.shape[1]} x {axis.shape[0]}, unlike the pictures before; make the "
                                "flow of this video anew.")
            axes.append(axis)
        return _fit(np.stack(axes, axis=-1), self.size)


def find_arrays(
    folder: str | os.PathLike[str], option: str, names: Sequence[str], with_folders: bool = False
) -> dict[str, pathlib.Path]:
    """NAME.npy or v_NAME.npy of each video, in `folder` or one folder below; videos without one are left out.

    Args:
      folder: as the user gave it by the option `option`.
      option: its name, for the error.
      names: of videos.
      with_folders: take a folder of that name too, where there is no array.

    Raises UserError where there is no such folder.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"{option} {folder}: no such folder.")
    wanted = {f"{prefix}{name}": name for prefix in ("v_", "") for name in names}
    arrays: dict[str, pathlib.Path] = {}
    folders: dict[str, pathlib.Path] = {}
    level, below = [root], list[pathlib.Path]()
    for depth in range(2):
        for path in (path for parent in level for path in sorted(parent.iterdir())):
            name = wanted.get(path.name.removesuffix(".npy"))
            if name and path.suffix == ".npy":
                arrays.setdefault(name, path)
            elif name and with_folders and path.is_dir():  # thousands of pictures are not listed in vain
                folders.setdefault(name, path)
            elif depth == 0 and path.is_dir():
                below.append(path)
        level = below
    return folders | arrays


def open_array(path: pathlib.Path, channels: int) -> np.ndarray:
    """A memory-mapped array, uint8 [T, H, W, channels] with nothing empty. Raises UserError for any other file."""
    kind = {2: "flow, uint8 [T, H, W, 2]", 3: "frames, uint8 [T, H, W, 3]"}[channels]
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read as an array of {kind} ({reason}); save it anew with numpy.save."
                        ) from None
    if not isinstance(array, np.ndarray):  # np.load opens archives, too
        raise UserError(f"{path}: is an archive, not one array of {kind}; save it anew with numpy.save.")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise UserError(f"{path}: holds {array.dtype} {list(array.shape)}, not {kind}; save it anew in that form.")
    return array


def _list_pictures(folder: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The pairs (x, y) in order, from flow_x_NUMBER.jpg in the folder, or NUMBER.jpg in its folders x and y."""
    by_axis = []
    for axis in ("x", "y"):
        prefixes = (f"flow_{axis}_", "") if (folder / axis).is_dir() else (f"flow_{axis}_",)
        place = folder / axis if (folder / axis).is_dir() else folder
        found = {}
        for path in place.iterdir():
            for prefix in prefixes:
                match = _PICTURE.fullmatch(path.name.removeprefix(prefix))
                if path.name.startswith(prefix) and match:
                    found[int(match["number"])] = path
        by_axis.append(found)
    xs, ys = by_axis
    if not xs:
        raise UserError(f"{folder}: holds no picture flow_x_00000.jpg; give a folder with one folder of denseflow's "
                        "pictures for each video.")
    for number in range(min(xs), max([*xs, *ys]) + 1):
        for axis, found in (("x", xs), ("y", ys)):
            if number not in found:
                raise UserError(f"{folder}: the {axis} picture number {number} is missing; make the flow of this video "
                                "anew.")
    return [(xs[number], ys[number]) for number in sorted(xs)]


def _fit(field: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 2] to [size, size, 2]; rest is between two bytes, at 127.5."""
    height, width = field.shape[:2]
    if (height, width) == (size, size):
        return field
    centred = resize_image(field.astype(np.float32) - 127.5, size, size)
    scaled = centred * np.array([size / width, size / height], np.float32) + 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
