"""The one error a user can mend: it names the value, what is allowed and what to change."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. Commands print it as one line, with the setting to change, and exit with 2.

    Attributes:
      problem: what is wrong.
      argument: the name of the argument that was wrong; commands know which setting holds it.
      remedy: what helps in Python; commands that know the argument say what helps there instead.
    """

    def __init__(self, problem: str, argument: str | None = None, remedy: str | None = None):
        super().__init__(problem if remedy is None else join(problem, remedy))
        self.problem, self.argument, self.remedy = problem, argument, remedy


def join(problem: str, remedy: str) -> str:
    """Both in one line."""
    return f"{problem}{'' if problem.endswith(('.', '?')) else ';'} {remedy}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest allowed name, or '' where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
