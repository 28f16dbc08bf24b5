"""The folder a run writes: it holds one run, and refuses another."""

import json
from pathlib import Path

import ml_collections

from rope_study.decoder import variants
from rope_study.errors import UserError
from rope_study.files import write_atomically
from rope_study.sharding import is_main_process, wait_for_all

IDENTITY_FILE = "run.json"

# Settings that may change between the start of a run and its continuation: results stay the same.
FREE = ("workdir", "mesh", "train.checkpoint_every", "train.log_every")


def identity(config: ml_collections.ConfigDict, **more) -> dict:
    """What makes a run this run, as flat JSON values: every setting but the free ones, and more."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            flat[name] = value
    # A setting at "none" is left out: runs from before it existed go on.
    flat = {name: value for name, value in flat.items() if value != variants.NONE}
    flat["encodings"] = [variants.name(encoding) for encoding in config.encodings]
    flat["model.rotary"] = variants.name(config.model.rotary)
    return {name: value for name, value in flat.items() if name not in FREE} | more


def claim(folder: Path, identity: dict) -> None:
    """Makes the folder this run's, or checks that it already is.

    Every process checks before the main one writes, and none goes on before it has.

    Raises:
      UserError: it holds another run (the settings that differ are named) or other files.
    """
    file = folder / IDENTITY_FILE
    if file.exists():
        found = json.loads(file.read_text())
        differing = [
            f"{name} is {found.get(name)!r} there and {identity.get(name)!r} here"
            for name in sorted(found.keys() | identity.keys())
            if found.get(name) != identity.get(name)
        ]
        if differing:
            raise UserError(
                f"{folder} holds a different run ({'; '.join(differing)});"
                " nothing was changed: set config.workdir to a new folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is no run of this project;"
            " nothing was changed: set config.workdir to a new folder"
        )
    wait_for_all("workdir checked")
    if is_main_process() and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(identity, indent=1) + "\n")
    wait_for_all("workdir claimed")
