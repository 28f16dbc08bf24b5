"""Runs a command in this process as `python -m` would."""

import re
import sys
import threading

import pytest
from absl import flags

from rope_study import command  # noqa: F401, absl's own flags come with it

BEFORE = set(flags.FLAGS)


def forget_flags() -> None:
    """Takes back what the command before defined; what libraries defined stays."""
    for name in set(flags.FLAGS) - BEFORE:
        if not name.startswith("grain"):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def run_command(main, *arguments) -> int:
    """The exit status of a command's `main` with these arguments."""
    forget_flags()
    main_module, argv = sys.modules["__main__"], sys.argv
    hooks = sys.unraisablehook, threading.excepthook
    documentation, sys.argv = main_module.__doc__, [main.__module__, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv, main_module.__doc__ = argv, documentation
        sys.unraisablehook, threading.excepthook = hooks
    return stop.value.code or 0


def check_one_line(capfd, message: str) -> None:
    """What was printed as an error is one line that matches."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
