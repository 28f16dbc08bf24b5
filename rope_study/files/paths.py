"""Paths as a user writes them: local ones, and gs://bucket/... through etils.epath and fsspec.

A path in a bucket is an epath.Path, which has of pathlib's methods those that are used here. Where
a bucket is no disk the functions below stand between: a folder is only what names of objects begin
with, an object appears whole or not at all and is never appended to, and libraries that map files
want local ones.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rope_study.errors import UserError

# What epath knows. Of these only gs has been tested, and holds runs.
SCHEMES = ("gs", "s3", "az", "hf")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)")


def to_path(written: str | os.PathLike, argument: str | None = None) -> Path:
    """The path that a user wrote, ~ expanded; "gs://bucket/..." lies in a bucket.

    Args:
      written: by the user, or a path from here.
      argument: what it was passed as, for errors.

    Raises:
      UserError: what no file can be called, another kind of address, a library that is missing,
        or a bucket that does not answer.
    """
    if not isinstance(written, str | os.PathLike) or not os.fspath(written):
        raise UserError(f"{written!r} is no path: give that of a file or folder", argument)
    text = os.fspath(written)
    if (address := _ADDRESS.match(text)) is None:
        return _local(text, argument)
    scheme, bucket = address.groups()
    if scheme not in SCHEMES or not bucket:
        raise UserError(
            f"{text!r} is no path: give a local one, or gs://bucket/folder/file", argument
        )
    _check_installed(scheme, argument)
    if scheme == "gs":
        _check_bucket(f"gs://{bucket}", argument)
    from etils import epath

    return epath.Path(text)  # type: ignore[return-value]


def _local(written: str, argument: str | None) -> Path:
    """A path on a disk; UserError for what no file can be called."""
    path = Path(os.path.expanduser(written))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whether it is there is for others to say
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{written!r:.200} is no path ({reason})", argument) from error
    return path


def is_remote(path: Path) -> bool:
    """Whether it lies in a bucket."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """From the root; a path in a bucket always is."""
    return path if is_remote(path) else path.absolute()


def kind_of(path: Path) -> str | None:
    """What is there, "file" or "folder"; None, too, of a whole text, too long for a name."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else None
    except OSError:
        return None


def size_of(file: Path) -> int:
    """Bytes of a file."""
    about: Any = file.stat()
    return about.length if is_remote(file) else about.st_size


def _check_installed(scheme: str, argument: str | None) -> None:
    import fsspec
    from fsspec.config import conf

    if scheme == "gs" and importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            "gs:// paths need a library that is not installed: pip install 'rope_study[gcs]'",
            argument,
        )
    # Other hosts write too: what a folder held a minute ago says little.
    conf.setdefault(scheme, {})["use_listings_cache"] = False
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{scheme}:// paths: {error}", argument) from error


@functools.cache
def _check_bucket(bucket: str, argument: str | None) -> None:
    """Asks once, so that a wrong name or a missing permission is said before work begins."""
    try:
        with as_os_errors(bucket):
            file_system, name = _file_system(bucket)
            file_system.info(name)
    except OSError as error:
        raise UserError(
            f"{bucket} cannot be reached ({error.strerror or error}): check its name, and that"
            " `gcloud auth application-default login` or the machine's service account may read it",
            argument,
        ) from error


def _file_system(path: Path | str) -> tuple[Any, str]:
    """fsspec's file system of a path in a bucket, and the path there."""
    import fsspec

    return fsspec.core.url_to_fs(str(path))


@contextlib.contextmanager
def as_os_errors(path: Path | str) -> Iterator[None]:
    """What libraries of buckets raise - no class in common - as an OSError of the path."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(0, first_line(error), str(path)) from error
    except Exception as error:
        raise OSError(0, first_line(error), str(path)) from error


def first_line(error: object) -> str:
    """The first line of what an error says, or what it is called."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


# --- many files -------------------------------------------------------------------------------


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in the folders below it, sorted."""
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return [folder / name for name in objects_below(folder)]


def objects_below(folder: Path) -> dict[str, dict[str, Any]]:
    """What a bucket says of every object below a folder in it, by its path there, sorted."""
    with as_os_errors(folder):
        file_system, root = _file_system(folder)
        found = file_system.find(root, detail=True)
    return {os.path.relpath(name, root): found[name] for name in sorted(found)}


def matches(pattern: str) -> list[Path]:
    """The files and folders that a glob names, ** for any folders between."""
    path = to_path(pattern, "path")
    if not is_remote(path):
        return [Path(match) for match in glob.glob(str(path), recursive=True)]
    with as_os_errors(path):
        file_system, root = _file_system(path)
        return [to_path(file_system.unstrip_protocol(match)) for match in file_system.glob(root)]


# --- copies -----------------------------------------------------------------------------------


def local_copy(file: Path) -> Path:
    """A local file with this content, for libraries that need one: itself, or a copy.

    Copies lie in the folder for temporary files ($TMPDIR) until the process ends, and are made
    again where the object has changed.
    """
    if not is_remote(file):
        return file
    import fsspec

    with as_os_errors(file):
        copy = fsspec.open_local(f"filecache::{file}", filecache={"check_files": True})
    assert isinstance(copy, str)
    return Path(copy)


def upload(source: Path, target: Path, last: Sequence[str] = ()) -> None:
    """Copies a local file, or all files below a folder, into a bucket.

    Args:
      source: local.
      target: in the bucket; what is there of other names stays.
      last: names in the folder of which the objects appear after all others.
    """
    with as_os_errors(target):
        file_system, name = _file_system(target)
        if source.is_file():
            file_system.put_file(str(source), name)
            return
        files = [file.relative_to(source).as_posix() for file in files_below(source)]
        for group in ([f for f in files if f not in last], [f for f in files if f in last]):
            if group:
                places = [f"{name}/{file}" for file in group]
                file_system.put([str(source / file) for file in group], places)


class Writable:
    """A local folder to write to bit by bit: a folder itself, or one that is copied to its bucket.

    Attributes:
      local: what to write to.
    """

    def __init__(self, folder: Path):
        """Of a folder that is made by the first file."""
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self.local = Path(self._temporary.name) if self._temporary else folder

    def save(self) -> None:
        """Copies what was written so far; on a disk it is there."""
        if self._temporary:
            upload(self.local, self._folder)

    def close(self) -> None:
        """Copies all that was written; a temporary folder is removed."""
        self.save()
        if self._temporary:
            self._temporary.cleanup()


def remove(path: Path) -> None:
    """Removes an object, or all below a folder, from a bucket; nothing where there is none."""
    with as_os_errors(path), contextlib.suppress(FileNotFoundError):
        file_system, name = _file_system(path)
        file_system.rm(name, recursive=True)


def move(source: Path, target: Path) -> None:
    """Moves a file or folder; in a bucket each object by itself."""
    if not is_remote(source):
        os.rename(source, target)
        return
    with as_os_errors(source):
        file_system, name = _file_system(source)
        file_system.mv(name, _file_system(target)[1], recursive=True)
