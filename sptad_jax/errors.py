"""The one exception that a user is meant to read, and how a command shows it."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input from the user: one plain sentence that names the file, the field and the remedy."""


def report_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorates a command's `main(argv=None)`: a UserError becomes one line on standard error and exit code 2.

    So does an OSError that names a file, such as one in a folder that the user may not enter, and a package that is not
    installed.

    `--debug` among the arguments, or SPTAD_DEBUG=1 in the environment, shows the traceback instead. Ctrl-C gives 130.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        debug = "--debug" in (sys.argv if argv is None else argv) or os.environ.get("SPTAD_DEBUG") == "1"
        try:
            return main(argv) or 0
        except (UserError, OSError, ModuleNotFoundError) as error:
            if debug or (isinstance(error, OSError) and error.filename is None):
                raise
            sentence = str(error)
            if isinstance(error, ModuleNotFoundError):
                sentence = f"this needs the package '{error.name}'; install the extra [data]."
            if isinstance(error, OSError):
                sentence = f"{error.filename}: {error.strerror}; check the path, its permissions and its disk's room."
            print(f"error: {sentence}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapper
