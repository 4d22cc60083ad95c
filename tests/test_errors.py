"""How commands end: exit codes, one line on standard error, and a traceback when it is asked for."""

import sys

import pytest

from sptad_jax.errors import UserError, report_errors


@report_errors
def command(argv=None):
    """Raises what the first argument names, or returns it as a number."""
    what = (sys.argv if argv is None else argv)[-1]
    user = UserError("a.json: no such file; give another.")
    known = {"user": user, "bug": ValueError("x"), "ctrl-c": KeyboardInterrupt(), "pipe": BrokenPipeError(32, "pipe"),
             "package": ModuleNotFoundError("No module named 'av'", name="av"),
             "locked": PermissionError(13, "Permission denied", "/there/a.json")}
    if what in known:
        raise known[what]
    return None if what == "none" else int(what)


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("SPTAD_DEBUG", raising=False)


def test_user_error_is_one_line(capsys):
    """A traceback, an exit code of success, or a message on standard output, where scripts read results."""
    assert command(["user"]) == 2
    assert capsys.readouterr() == ("", "error: a.json: no such file; give another.\n")


@pytest.mark.parametrize("argv, code", [(["none"], 0), (["0"], 0), (["2"], 2), (["ctrl-c"], 130)])
def test_exit_codes(argv, code, capsys):
    """None as an exit code, a command's own code lost, or a traceback for Ctrl-C."""
    assert command(argv) == code
    assert "Traceback" not in capsys.readouterr().err


def test_missing_packages_are_named(capsys):
    """A traceback of imports for who left out the extra that reads videos."""
    assert command(["package"]) == 2
    assert capsys.readouterr() == ("", "error: this needs the package 'av'; install the extra [data].\n")


def test_system_errors_name_the_file(capsys):
    """A traceback for a folder that one may not enter; one that names no file is for the developers."""
    assert command(["locked"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: /there/a.json: Permission denied; ") and err.count("\n") == 1
    with pytest.raises(PermissionError):
        command(["--debug", "locked"])
    with pytest.raises(BrokenPipeError):
        command(["pipe"])


def test_bugs_keep_their_traceback():
    """A bug dressed as the user's mistake."""
    with pytest.raises(ValueError, match="x"):
        command(["bug"])


def test_debug_shows_the_traceback(monkeypatch):
    """A switch that is not looked at: as an argument, on the command line, in the environment."""
    with pytest.raises(UserError):
        command(["--debug", "user"])
    monkeypatch.setattr(sys, "argv", ["sptad", "--debug", "user"])
    with pytest.raises(UserError):
        command()
    monkeypatch.setattr(sys, "argv", ["sptad", "user"])
    assert command() == 2
    monkeypatch.setenv("SPTAD_DEBUG", "1")
    with pytest.raises(UserError):
        command()


def test_name_and_help_survive():
    """A decorated main that introspection knows as 'wrapper'."""
    assert command.__name__ == "command" and command.__doc__.startswith("Raises")
