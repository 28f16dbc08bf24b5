"""The one error a user can mend: it names the value, what is allowed and what to change."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. Commands print it as one line, with the setting to change, and exit with 2.

    Attributes:
      argument: the name of the argument that was wrong; commands know which setting holds it.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message)
        self.argument = argument


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest allowed name, or '' where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
