"""What made a run: at each start the step, settings, seed, devices, versions and source revision.

They stand in starts.json, so that of a run that went on elsewhere every part is known.
"""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

import rope_study
from rope_study.errors import UserError
from rope_study.files import read_json, write_atomically
from rope_study.sharding import Layout, is_main_process
from rope_study.training.settings import Run

FILE = "starts.json"
LIBRARIES = ("rope_study", "jax", "jaxlib", "flax", "optax", "numpy")
UNKNOWN = "unknown"


def record_start(run: Run, layout: Layout, step: int) -> None:
    """Adds a start at `step` to the run's starts.json, unless there is nothing left to train."""
    if step == run.train.steps or not is_main_process():
        return
    file = run.folder / FILE
    starts = _earlier(file) if step else []
    starts.append(
        {
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seed": run.seed,
            "encoding": run.name,
            "data": dataclasses.asdict(run.data),
            "train": dataclasses.asdict(run.train),
            "mesh": dict(layout.mesh.shape),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "versions": versions(),
            "source": source_revision(),
        }
    )
    write_atomically(file, json.dumps({"starts": starts}, indent=1, default=str) + "\n")


def _earlier(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        return list(read_json(file, ("starts",))["starts"])
    except UserError as error:  # no reason not to train
        print(f"{error.problem}: written anew", file=sys.stderr)
        return []


def versions() -> dict[str, str]:
    """Of Python and the libraries that the numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    """Of an installed distribution; this project also runs from a folder that was not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def source_revision() -> str:
    """The git commit of this package, "... with changes" where files differ from it; or "unknown".

    A repository that only happens to lie around an installed package is not asked.
    """
    folder = Path(rope_study.__file__).parent
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    if not commit:
        return UNKNOWN
    return f"{commit} with changes" if _git(folder, "status", "--porcelain", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository, or an error."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
