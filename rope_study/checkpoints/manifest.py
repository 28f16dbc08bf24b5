"""What the files of a checkpoint were when they were written: their sizes and checksums.

TensorStore's own checksums cover the index of its files and not the arrays in them. The manifest is
an item of the checkpoint, so it is there with the rest or not at all. The checksums are CRC-32C,
which a bucket keeps of every object: there nothing is read back.
"""

import base64
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import orbax.checkpoint as ocp

from rope_study import sharding
from rope_study.errors import UserError
from rope_study.files import explained, paths, read_json

ITEM, FILE = "manifest", "crc32c.json"
CHUNK = 2**20  # bytes read at once


class ManifestHandler(ocp.CheckpointHandler):
    """Writes the manifest of the items that were registered before it."""

    def save(self, directory: Any, args: "ManifestArgs") -> None:
        """Nothing yet: the other items are still being written."""

    def finalize(self, directory: Any) -> None:
        """Once they are, and before the checkpoint takes its place."""
        if sharding.is_main_process():
            (directory / FILE).write_text(json.dumps(_sums(paths.to_path(directory).parent)))

    def restore(self, directory: Any, args: "ManifestArgs | None" = None) -> None:
        """See `check`."""


@ocp.args.register_with_handler(ManifestHandler, for_save=True, for_restore=True)
class ManifestArgs(ocp.args.CheckpointArgs):
    """The manifest takes no arguments."""


def check(checkpoint: Path, items: Iterable[str]) -> None:
    """Compares the files of these items of a checkpoint with its manifest.

    Raises:
      UserError: naming the first file that is missing, cut off or changed.
    """
    if not (checkpoint / ITEM / FILE).exists():  # of an earlier version
        return
    wanted = tuple(f"{item}/" for item in items)
    written = read_json(checkpoint / ITEM / FILE)
    with explained():
        there = _sums(checkpoint)
    for name, (size, checksum) in written.items():
        if not name.startswith(wanted) or there.get(name) == [size, checksum]:
            continue
        if name not in there:
            problem = "missing"
        elif there[name][0] != size:
            problem = f"damaged: {there[name][0]} bytes of {size}"
        else:
            problem = "damaged: not what was written"
        raise UserError(f"{checkpoint / name} is {problem}")


def _sums(checkpoint: Path) -> dict[str, list]:
    """[bytes, CRC-32C in base64] of every file in the items of a checkpoint, by its path there."""
    if paths.is_remote(checkpoint):
        objects = paths.objects_below(checkpoint)
        sums = {name: [about["size"], about["crc32c"]] for name, about in objects.items()}
    else:
        files = paths.files_below(checkpoint)
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_sum, files))
        sums = {str(f.relative_to(checkpoint)): s for f, s in zip(files, found, strict=True)}
    return {name: s for name, s in sums.items() if Path(name).parent not in (Path(), Path(ITEM))}


def _sum(file: Path) -> list:
    size, checksum = 0, google_crc32c.Checksum()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            checksum.update(chunk)
    return [size, base64.b64encode(checksum.digest()).decode()]
