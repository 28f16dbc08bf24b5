"""The one error a user can mend: it names the value, what is allowed and where to set it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. Commands print it as one line and exit with status 2."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest allowed name, or '' where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
