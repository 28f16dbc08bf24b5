"""A run's scalars: one JSON line a logged step, and the same to TensorBoard.

Objects of a bucket cannot be appended to: there both are written to a temporary folder, and copied
by `save`, which comes before every checkpoint, so that a run that goes on from it lacks no line.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rope_study.files import explained, write_atomically
from rope_study.files.paths import Writable


class MetricsLog:
    """Appends {"step": ..., name: value, ...} to metrics.jsonl and to tensorboard/."""

    def __init__(self, folder: Path, first_step: int):
        """Opens the log to go on at `first_step`: lines a killed run wrote past it are dropped."""
        from tensorboardX import SummaryWriter  # imports PyTorch where that is installed

        self._writable = Writable(folder)
        local = self._writable.local
        earlier = [row for row in read_metrics(folder) if row["step"] < first_step]
        lines = local / "metrics.jsonl"
        write_atomically(lines, "".join(json.dumps(row) + "\n" for row in earlier))
        self._lines = lines.open("a", buffering=1)
        self._board = SummaryWriter(str(local / "tensorboard"), purge_step=first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one step's scalars."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def save(self) -> None:
        """Copies both to the bucket; on a disk they are there."""
        self._board.flush()
        with explained():
            self._writable.save()

    def close(self) -> None:
        """Writes all that is missing, and closes both."""
        self._lines.close()
        self._board.close()
        with explained():
            self._writable.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; lines cut off by a kill or damaged are left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
