"""A run's scalars: one JSON line a logged step, and the same to TensorBoard.

Objects of a bucket cannot be appended to: there both are written to a temporary folder, and copied
by `save`, which comes before every checkpoint, so that a run that goes on from it lacks no line.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from etils import epy

from rope_study.files import explained, write_atomically
from rope_study.files.paths import Writable

with epy.lazy_imports():  # a third of a second, and PyTorch where that is installed
    import tensorboardX


class MetricsLog:
    """Appends {"step": ..., name: value, ...} to metrics.jsonl and to tensorboard/."""

    def __init__(self, folder: Path, first_step: int):
        """Opens the log to go on at `first_step`: lines a killed run wrote past it are dropped."""
        self._folder, self._writable = folder, Writable(folder)
        local = self._writable.local
        earlier = [row for row in read_metrics(folder) if row["step"] < first_step]
        lines = local / "metrics.jsonl"
        write_atomically(lines, "".join(map(_line, earlier)))
        self._lines = lines.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(str(local / "tensorboard"), purge_step=first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one step's scalars."""
        with self._explained():
            self._lines.write(_line({"step": step, **scalars}))
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def save(self) -> None:
        """Copies both to the bucket; on a disk they are there."""
        with self._explained():
            self._board.flush()
            self._writable.save()

    def close(self) -> None:
        """Writes all that is missing, and closes both."""
        with self._explained():
            self._lines.close()
            self._board.close()
            self._writable.close()

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained("workdir", self._folder)


def _line(row: Mapping[str, float]) -> str:
    """A row as JSON, which has no NaN and Inf: null stands for them."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl, NaN for what was not finite.

    Lines cut off by a kill or damaged are left out.
    """
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows
