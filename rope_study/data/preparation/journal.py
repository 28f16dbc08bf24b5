"""What of the input is in the files already: a line for each block, so that a killed run goes on.

The first line says what the files depend on; another run may not go on with them.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rope_study.data.store import INDEX
from rope_study.errors import UserError
from rope_study.files import explained

BY_PIECE = "by_piece"


@dataclasses.dataclass(frozen=True)
class Entry:
    """All that is done after a block.

    Attributes:
      file, unit: the block: the number of its file, and its own in the file.
      position: bytes of the input read.
      state: of the files, see `store.Writer`.
      counts: of documents and of what was skipped.
      examples: of each reason to skip what is wrong, the first.
    """

    file: int = -1
    unit: int = -1
    position: int = 0
    state: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def both_sides(self) -> bool:
        """Whether there are documents on either side."""
        return sum(size > 0 for name, (size, _) in self.state.items() if "tokens" in name) == 2


class Journal:
    """The journal of a folder, which is made or gone on with."""

    def __init__(self, file: Path, made: dict[str, Any]):
        """UserError where it was begun for something else than `made`."""
        self.folder, self._file, self._made = file.parent, file, made
        self.by_piece, self.last = False, Entry()
        lines = list(read_lines(file, mend=True)) if file.exists() else []
        if not lines:
            self.restart(by_piece=False)
            return
        self.by_piece = lines[0].pop(BY_PIECE)
        check_same(self.folder, lines[0], made)
        entries = [line for line in lines[1:] if "done" not in line]
        self.last = Entry(**entries[-1]) if entries else Entry()
        self._stream = file.open("a", encoding="utf-8")

    def restart(self, by_piece: bool) -> None:
        """Begins anew."""
        self.by_piece, self.last = by_piece, Entry()
        with explained("out"):
            self._stream = self._file.open("w", encoding="utf-8")
        self._write({**self._made, BY_PIECE: by_piece})

    def append(self, entry: Entry) -> None:
        """Notes a block whose columns were handed to the system."""
        self.last = entry
        self._write(dataclasses.asdict(entry))

    def close(self, done: bool = False) -> None:
        """Closes the file; `done` notes that there is nothing more to come."""
        if done:
            self._write({"done": True})
        self._stream.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def read_lines(file: Path, mend: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of a journal; the last may be cut off by a kill: it is left out, or taken away."""
    with explained("out"):
        content = file.read_bytes()
        *lines, rest = content.split(b"\n")
        if mend and rest:
            os.truncate(file, len(content) - len(rest))
    yield from map(json.loads, lines)


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError where a folder was made of something else."""
    names = sorted(before.keys() | now.keys())
    if different := [name for name in names if before.get(name) != now.get(name)]:
        kind = "store" if (folder / INDEX).exists() else "unfinished store"
        raise UserError(
            f"{folder} holds another {kind} (other: {', '.join(different)}); nothing was changed:"
            " choose a new folder, or delete it",
            "out",
        )
