"""Paths as a user writes them."""

import os
from pathlib import Path

from rope_study.errors import UserError


def to_path(written: str | os.PathLike, argument: str | None = None) -> Path:
    """The path that a user wrote, ~ expanded.

    Args:
      written: by the user, or a path from here.
      argument: what it was passed as, for errors.

    Raises:
      UserError: what no file can be called: no text, nothing, or a name that is too long.
    """
    if not isinstance(written, str | os.PathLike) or not os.fspath(written):
        raise UserError(f"{written!r} is no path: give that of a file or folder", argument)
    path = Path(os.path.expanduser(written))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whether it is there is for others to say
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(written)!r:.200} is no path ({reason})", argument) from error
    return path
