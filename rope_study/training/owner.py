"""Who writes a folder: one process at a time, of all hosts, on a disk or in a bucket.

owner.json names the process. It is only ever written over the version that was read before, which
TensorStore does on disks and in buckets alike, so of two that come at once one is first. The owner
writes it anew every BEAT seconds. Where it has not for STALE seconds it is gone - preempted, or
its host is - and the next may have the folder; at once where it ran on this very machine and its
process is no more. An owner that was taken for gone and is not stops as soon as it notices.
"""

import _thread
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

import tensorstore as ts

from rope_study.errors import UserError
from rope_study.files.paths import absolute, first_line, is_remote

FILE = "owner.json"
BEAT, STALE = 20.0, 120.0  # seconds


@dataclasses.dataclass(frozen=True)
class _Owner:
    """Attributes:
    pid, host: of the process, for people.
    machine: where pids mean the same: host, boot and PID namespace.
    key: of this ownership alone.
    seen: Unix time in seconds.
    """

    pid: int
    host: str
    machine: list[str]
    key: str
    seen: float

    @property
    def silence(self) -> float:
        """Seconds since it was last seen."""
        return time.time() - self.seen

    @property
    def is_gone(self) -> bool:
        """Whether another may take its place."""
        dead = self.machine == _machine() and not _is_alive(self.pid)
        return dead or self.silence > STALE


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, which exists, for this process.

    Raises:
      UserError: another process holds it, or the file cannot be written.
    """
    file = _OwnerFile(folder)
    file.claim(file.free_version())
    stop = threading.Event()
    beat = threading.Thread(target=file.keep, args=(stop,), name="owner", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        file.release()


class _OwnerFile:
    """The file in one folder, as this process knows it."""

    def __init__(self, folder: Path):
        self._folder, self._file = folder, folder / FILE
        quoted = urllib.parse.quote(str(absolute(folder)), safe=":/")
        address = quoted if is_remote(folder) else f"file://{quoted}"
        with self._explained():
            self._store = ts.KvStore.open(f"{address}/").result()
        self._key, self._version = uuid.uuid4().hex, b""

    def free_version(self) -> bytes:
        """The version of the file that a new owner may replace; UserError where there is none."""
        with self._explained():
            found = self._store.read(FILE).result()
        owner = _parse(found.value) if found.state == "value" else None
        if owner is not None and not owner.is_gone:
            raise self._refusal(owner)
        return found.stamp.generation

    def claim(self, version: bytes) -> None:
        """Makes this process the owner, in place of that version of the file."""
        if not self._write(version):
            raise UserError(
                f"another process has just begun to write {self._folder}; nothing was changed:"
                " wait for it, or choose a new workdir",
                "workdir",
            )

    def keep(self, stop: threading.Event) -> None:
        """Says every BEAT seconds that the owner is alive; ends the program where it is not."""
        while not stop.wait(BEAT):
            try:
                still = self._write(self._version)
            except UserError as error:  # the network may come back before anyone is here
                print(error, file=sys.stderr)
                continue
            if not still and not stop.is_set():
                print(
                    f"another process has taken {self._folder}: this one was silent for too long",
                    file=sys.stderr,
                )
                _thread.interrupt_main()
                return

    def release(self) -> None:
        """Removes the file, unless it is another's by now."""
        with self._explained():
            self._store.write(FILE, None, if_equal=self._version).result()

    def _write(self, version: bytes) -> bool:
        """Whether the file was written, which it is only over that version of it."""
        owner = _Owner(os.getpid(), socket.gethostname(), _machine(), self._key, time.time())
        content = json.dumps(dataclasses.asdict(owner))
        with self._explained():
            self._store.write(FILE, content.encode(), if_equal=version).result()
            now = self._store.read(FILE).result()
        # A write whose answer was lost is tried again, and then meets what it wrote itself.
        mine = now.state == "value" and (written := _parse(now.value)) and written.key == self._key
        if mine:
            self._version = now.stamp.generation
        return bool(mine)

    def _refusal(self, owner: _Owner) -> UserError:
        left = max(0.0, STALE - owner.silence)
        return UserError(
            f"process {owner.pid} on {owner.host} is writing {self._folder}, seen"
            f" {max(0.0, owner.silence):.0f} s ago; nothing was changed: wait for it, or choose a"
            f" new workdir (if it is dead, start again in {left:.0f} s)",
            "workdir",
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore raises classes that have nothing in common
            reason = first_line(error).split(" [")[0]
            raise UserError(f"{self._file}: {reason}", "workdir") from error


def _parse(content: bytes) -> _Owner | None:
    """None for what no owner wrote."""
    try:
        return _Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _machine() -> list[str]:
    """Host, boot and PID namespace, as far as the system tells."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else "",
        os.readlink(namespace) if namespace.exists() else "",
    ]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
