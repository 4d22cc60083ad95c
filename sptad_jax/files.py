"""Files that are written whole: under a temporary name, then renamed, so that no reader ever sees half of one."""

import json
import os
import pathlib
import uuid
from typing import Any


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content`; an existing file stays untouched if that fails. Raises OSError."""
    path = pathlib.Path(path)
    # not the process number: two machines that share the folder may have the same
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
