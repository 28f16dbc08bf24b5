"""All processes of a command end together: the first one decides how, and says it.

What one process fails with would leave the others waiting for it in a collective. So each says in
JAX's key-value store, twice a second, that it lives, what it failed with, or that it is done; the
first reads what all say and writes the verdict there. A process that says nothing is gone.
"""

import atexit
import collections
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from jax._src import distributed  # JAX shows its key-value store nowhere else

PERIOD = 0.5  # seconds between two looks
GRACE = 2  # looks after a failure: most errors come to all processes at about the same time
# Looks without a sign of life until a process is gone: usually, and where the program of another
# one failed, as it does when a peer closes its connections.
SILENT, SUSPECT = 80, 10
FOLDER, VERDICT = "rope_study/said/", "rope_study/verdict"


@dataclasses.dataclass(frozen=True)
class End:
    """How a process or all of them end.

    Attributes:
      status: the exit status.
      line: what is printed; nothing where it is empty.
      doubtful: it may have failed only because another process is gone.
    """

    status: int
    line: str = ""
    doubtful: bool = False


DONE = End(0)


def begin() -> None:
    """Watches over the processes from now on; does nothing where there is one."""
    global _watch
    state = distributed.global_state
    if state.client is not None and state.num_processes > 1 and _watch is None:
        assert state.coordinator_address is not None  # as there is a client
        _watch = _Watch(
            state.client, state.process_id, state.num_processes, state.coordinator_address
        )
        atexit.register(_watch.stop)


def is_watched() -> bool:
    """Whether there are several processes, that end together."""
    return _watch is not None


def finish() -> None:
    """Returns once all processes are done; at once where there is one."""
    if _watch is not None:
        _watch.wait(DONE)


def fail(end: End, details: str = "") -> NoReturn:
    """Ends all processes, this one at the latest; needs `is_watched`.

    Args:
      end: how this process would end.
      details: printed by this one, if it is what all end for.
    """
    assert _watch is not None
    _watch.details = details
    _watch.wait(end)
    raise AssertionError("the watch ends the process")


# --- the first process ------------------------------------------------------------------------


class Judge:
    """What the first process makes of what all say."""

    def __init__(self, count: int):
        self._count = count
        self._said: dict[int, str] = {}
        self._silence: collections.Counter[int] = collections.Counter()  # looks without a change
        self._failing = 0  # looks since the first failure

    def look(self, said: dict[int, str]) -> tuple[End, int] | None:
        """How all end, and for which process; None while they go on.

        Args:
          said: by process what it wrote last, as _Watch writes it.
        """
        self._count_silence(said)
        reports = {process: json.loads(text) for process, text in sorted(said.items())}
        ends = {p: End(*report["end"]) for p, report in reports.items() if report["end"]}
        failed = {process: end for process, end in ends.items() if end != DONE}
        doubtful = any(end.doubtful for end in failed.values())
        self._failing += bool(failed)
        for process in range(self._count):
            if self._silence[process] >= (SUSPECT if doubtful else SILENT):
                name = _name(process, self._count, reports.get(process, {}).get("host"))
                return gone(name), process
        sure = [process for process, end in failed.items() if not end.doubtful]
        patience = GRACE if sure else GRACE + SUSPECT
        if failed and (self._failing > patience or len(ends) == self._count):
            process = min(sure or failed)
            end = failed[process]
            if process and end.line:
                name = _name(process, self._count, reports[process]["host"])
                end = dataclasses.replace(end, line=f"{name}: {end.line}")
            return end, process
        return (DONE, 0) if len(ends) == self._count else None

    def is_alive(self, process: int) -> bool:
        """Whether it has said something lately."""
        return self._silence[process] < SUSPECT

    def _count_silence(self, said: dict[int, str]) -> None:
        for process in range(self._count):
            same = said.get(process) == self._said.get(process)
            self._silence[process] = self._silence[process] + 1 if same else 0
        self._said = said


def gone(name: str) -> End:
    """The end of all where a process is gone."""
    return End(1, f"error: {name} is gone; what was saved stays: start all processes again")


def _name(process: int, count: int, host: str | None) -> str:
    return f"process {process} of {count}" + (f" (host {host})" if host else "")


# --- every process ----------------------------------------------------------------------------


class _Watch:
    """Tells the others of this process in a thread of its own, and ends it by the verdict."""

    def __init__(self, client: Any, process: int, count: int, store: str):
        """`store` is where the first process can be reached, host:port."""
        self.details = ""
        self._store = store
        self._client, self._process, self._count = client, process, count
        self._judge = Judge(count) if process == 0 else None
        self._end: End | None = None
        self._beat = 0
        self._first_host: str | None = None
        self._done, self._stop = threading.Event(), threading.Event()
        # JAX aborts where the first process is gone, and sometimes where another one is; Python
        # would not hear of it.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._abort)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._on_abort)
        self._thread = threading.Thread(target=self._run, name="ending", daemon=True)
        self._thread.start()

    def wait(self, end: End) -> None:
        """Says how this process ends; returns only where all are done."""
        self._end = end
        self._done.wait()

    def stop(self) -> None:
        """Before the interpreter goes: the store goes too."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self._say()
                verdict = self._verdict()
            except RuntimeError:  # of JAX: the store is the first process's
                self._lose_first()
            if verdict and verdict[0] == DONE:
                self._done.set()
                return
            if verdict:
                self._leave(*verdict)

    def _say(self, has_left: bool = False) -> None:
        self._beat += 1
        end = self._end and dataclasses.astuple(self._end)
        said = {"host": socket.gethostname(), "beat": self._beat, "end": end, "left": has_left}
        self._client.key_value_set(f"{FOLDER}{self._process}", json.dumps(said), True)

    def _heard(self) -> dict[int, str]:
        said = self._client.key_value_dir_get(FOLDER)
        return {int(name.rpartition("/")[2]): text for name, text in said}

    def _verdict(self) -> tuple[End, int] | None:
        if self._judge is None:
            if self._first_host is None and (said := self._heard().get(0)):
                self._first_host = json.loads(said)["host"]
            found = dict(self._client.key_value_dir_get(VERDICT)).get(f"{VERDICT}/0")
            if found is None:
                return None
            end, process = json.loads(found)
            return End(*end), process
        verdict = self._judge.look(self._heard())
        if verdict is not None:
            end, process = verdict
            text = json.dumps([dataclasses.astuple(end), process])
            self._client.key_value_set(f"{VERDICT}/0", text, True)
        return verdict

    def _abort(self, number: int) -> None:
        """Handles SIGABRT: the thread that aborts waits until all end."""
        host, _, port = self._store.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            self._lose_first()
        self._end = self._end or End(1, "error: JAX aborted; its log says why", doubtful=True)
        time.sleep(2 * SILENT * PERIOD)

    def _lose_first(self) -> NoReturn:
        end = gone(_name(0, self._count, self._first_host))
        print(f"\n{end.line}", file=sys.stderr, flush=True)
        os._exit(end.status)

    def _leave(self, end: End, process: int) -> NoReturn:
        """Ends this process, whatever its other threads do."""
        sys.stdout.flush()
        if process == self._process and self.details:
            print(self.details, file=sys.stderr)
        if self._judge is not None and end.line:
            print(f"\n{end.line}", file=sys.stderr, flush=True)
        try:
            if self._judge is None:
                self._say(has_left=True)
            else:
                self._wait_until_all_left()
        except RuntimeError:
            pass  # the store is gone, and who would read it too
        os._exit(end.status)

    def _wait_until_all_left(self) -> None:
        """The store is this process's: the others have to read the verdict first."""
        assert self._judge is not None
        alive = [process for process in range(1, self._count) if self._judge.is_alive(process)]
        for _ in range(SILENT):
            said = self._heard()
            if all(json.loads(said[process])["left"] for process in alive):
                return
            self._stop.wait(PERIOD)


_watch: _Watch | None = None
