"""Files that are written whole, so that no reader ever sees half of one, on a disk or in a bucket (gs://)."""

import errno
import json
import os
import pathlib
import unicodedata
import uuid
from collections.abc import Container
from typing import Any, TypeAlias

from etils import epath

from sptad_jax.errors import UserError

AnyPath: TypeAlias = pathlib.Path | epath.Path  # of a disk, or of a bucket

_BUCKET = "gs://"


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path names objects of a bucket, which appear whole and cannot be appended to."""
    return os.fspath(path).startswith(_BUCKET)


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """epath for a bucket, and for nothing else: it takes a folder /s3/... of the disk for a bucket too."""
    return epath.Path(path) if in_bucket(path) else pathlib.Path(path)


def to_path(name: str | os.PathLike[str], option: str) -> AnyPath:
    """A path that a user gave as `option`: of a disk, or gs://BUCKET/...

    Raises UserError for another kind of address, and where a bucket cannot be reached.
    """
    name = os.fspath(name)
    if "://" in name and not in_bucket(name):
        raise UserError(f"{option} {name}: only gs://BUCKET/... and folders are known; mount it as a folder.")
    path = as_path(name)
    if in_bucket(name):
        try:
            path.exists()
        except Exception as error:  # of a package, of the network, of access rights: each raises its own
            raise UserError(f"{option} {name}: cannot be reached ({type(error).__name__}: {error}); install the extra "
                            "[gcs], name a bucket that exists and sign in to it, or give a folder.") from error
    return path


def composed(name: str) -> str:
    """The name with an accent and its letter in one: macOS writes them apart in file names, annotations seldom."""
    return unicodedata.normalize("NFC", name)


def files_below(folder: str | os.PathLike[str], endings: Container[str]) -> list[pathlib.Path]:
    """What has these endings (".mp4", in lower case; the files' may be of any) and is no folder, at any depth, sorted.

    Links to folders are followed, since videos often lie on another disk; each folder is looked at once. Links to
    files stay where they lead nowhere, so that they can be complained of.
    """
    found, seen, waiting = [], set(), [os.fspath(folder)]
    for start in waiting:  # which grows: links come last, so that a folder below `folder` goes by its own name
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += [path for name in sorted(folders) if os.path.islink(path := os.path.join(place, name))]
            found += [pathlib.Path(place, name) for name in names if os.path.splitext(name)[1].lower() in endings]
    return sorted(found)


def local_path(name: str) -> str:
    """The name of an output on this machine, for argparse. Raises UserError for an address: `pathlib` would take
    gs://BUCKET for a folder "gs:" here."""
    if "://" in name:
        raise UserError(f"{name}: results go to a file or folder of this machine; write there and copy it.")
    return name


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file. Raises OSError, whatever a bucket raises."""
    target = as_path(path)
    try:
        return target.read_bytes()
    except OSError:
        raise
    except Exception as error:  # of the network or the package: each raises its own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content`; an existing file stays untouched if that fails. Raises OSError."""
    target = as_path(path)
    if in_bucket(target):
        try:
            target.write_bytes(content)
        except Exception as error:  # of the network or the package: each raises its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
        return
    # not the process number: two machines that share the folder may have the same
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, as `write_bytes` does.

    What is no character, as in file names that are not UTF-8, becomes the escape that JSON has for it.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
