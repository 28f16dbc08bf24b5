"""Files: written whole or not at all, looked at before work begins, and what fails as one line.

In a bucket every object is whole by itself. A folder there is written object by object, what says
that it is complete last, and replaced object by object.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rope_study.errors import UserError
from rope_study.files import paths
from rope_study.files.paths import is_remote, to_path

# In a folder that is written whole, the files that readers look for first.
MARKERS = ("config.json", ".zgroup", "zarr.json", ".zmetadata")
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or choose another place",
    errno.EDQUOT: "the quota is used up: free some space, or choose another place",
    errno.EFBIG: "the file is larger than the system allows: choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "no permission: choose another place, or change whose it is",
    errno.EPERM: "no permission: choose another place, or change whose it is",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EEXIST: "it exists already: choose another place",
    errno.EISDIR: "it is a folder, and a file is wanted",
    errno.ENOENT: "it does not exist, or cannot be made there",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
}


def explain(error: OSError, argument: str | None = None) -> UserError:
    """What the system refused as one line: the path, the reason, and what helps."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    number = error.errno or 0
    reason = REMEDIES.get(number) or error.strerror or str(error) or type(error).__name__
    return UserError(f"{name}: {reason}" if name else reason, argument)


@contextlib.contextmanager
def explained(argument: str | None = None, path: Path | None = None) -> Iterator[None]:
    """Turns an OSError of what is done inside into `explain`'s UserError.

    `path` is named where the error names none, as when an open file is written to.
    """
    try:
        yield
    except OSError as error:
        if path is not None and error.filename is None:
            raise explain(OSError(error.errno, error.strerror, str(path)), argument) from error
        raise explain(error, argument) from error


def check_writable(path: str | os.PathLike, argument: str | None = None, size: int = 0) -> None:
    """Tries whether a file or folder can be made or changed; leaves nothing behind.

    Args:
      path: what will be written; the folders above it need not exist.
      argument: what the path was passed as, for errors.
      size: bytes that will be written at the least.

    Raises:
      UserError: no permission, a read-only or full disk, a path below a file, or a name that is not
        UTF-8.
    """
    folder = to_path(path, argument)
    if any("\ud800" <= character <= "\udfff" for character in str(folder)):
        raise UserError(f"{str(folder)!r} is not UTF-8, which NetCDF files need", argument)
    with explained(argument):
        if is_remote(folder):
            _check_bucket_writable(folder)
            return
        if folder.exists() and not folder.is_dir():
            folder = folder.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(path))
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{path}: {_in_words(size)} will be written and {_in_words(free)} are free: free some"
            " space, or choose another place",
            argument,
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _check_bucket_writable(path: Path) -> None:
    """Writes an object below the name that will be written, and removes it."""
    trial = path / f".{uuid.uuid4().hex}"
    with paths.as_os_errors(path):
        trial.write_bytes(b"")
        trial.unlink()


def check_new_folder(path: str | os.PathLike, argument: str | None = None, size: int = 0) -> Path:
    """The folder to write, ~ expanded; UserError where it has files or cannot be written."""
    folder = to_path(path, argument)
    with explained(argument):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder} exists and is not empty; nothing was changed: give a new folder",
                argument,
            )
    check_writable(folder, argument, size)
    return folder


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which then takes the place of `path` at once.

    The folders above are made. Where the writing fails nothing is left and `path` is as before.
    For a bucket the path is that of a temporary file or folder, which is then uploaded.

    Raises:
      UserError: what the system refused.
    """
    if is_remote(path):
        with explained(), tempfile.TemporaryDirectory() as folder:
            yield (part := Path(folder, path.name))
            if part.is_dir():
                paths.remove(path)  # readers see none rather than a mixture
            paths.upload(part, path, MARKERS)
        return
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    with explained():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _replace(part, path)
        finally:
            _remove(part)


def write_atomically(path: Path, text: str) -> None:
    """Writes the whole file, in UTF-8, or nothing; UserError where the system refuses."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(file: Path, keys: Sequence[str] = (), remedy: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      UserError: it cannot be read, is no JSON object, or lacks one of the keys; with the remedy.
    """
    try:
        with explained():
            text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, no object")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"without {', '.join(missing)}")
    except UserError as error:
        raise UserError(error.problem, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error})", remedy=remedy) from error
    return content


def move_to(path: Path, folder: Path) -> None:
    """Moves a file or folder into another folder, which is made; what is there stays too."""
    with explained():
        folder.mkdir(exist_ok=True)
        names = [path.name, *(f"{path.name}_{i}" for i in range(1, 1000))]
        paths.move(path, next(folder / name for name in names if not (folder / name).exists()))


def _replace(part: Path, path: Path) -> None:
    if part.is_dir():
        if path.exists():
            before = part.with_suffix(".before")
            os.replace(path, before)
            os.replace(part, path)
            _remove(before)
            return
    else:
        with part.open("rb+") as stream:  # the content before the name, should the power fail
            os.fsync(stream.fileno())
    os.replace(part, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
