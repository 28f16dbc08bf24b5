"""Arrays of an Orbax checkpoint by name, read one at a time: the trees of official Gemma.

The names are the same for the nested trees ({"layer_0": {"attn": ...}}) and the flat ones
({"transformer/layer_0/attn/q_einsum": {"w": ...}}), bare or under "params" in a training state:
"layer_0/attn/q_einsum/w". Arrays of image and audio encoders are left out.
"""

import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from rope_study.checkpoints.weight_map import Index
from rope_study.errors import UserError, nearest
from rope_study.files.paths import absolute, to_path

with epy.lazy_imports():  # half a second that only these checkpoints need
    import orbax.checkpoint as ocp

METADATA = "_METADATA"  # every Orbax checkpoint of a tree has this file

# In front of the names of the flat trees, and around trees that were saved with what holds them.
_WRAPPERS = re.compile("^(params/)?(transformer/)?")
_OTHER_MODALITIES = re.compile("SigLiP|vision_encoder/|audio_encoder/|embedder/(mm_|audio_)")
# The nested trees have these arrays bare, the flat ones in a dict.
_BARE = re.compile("/mlp/(gating_einsum|linear)$")


class OrbaxTree:
    """The text decoder's arrays in an Orbax checkpoint; opening reads names and shapes only."""

    def __init__(self, path: str | os.PathLike):
        """Opens an Orbax checkpoint, or a folder with one in it or in a folder of it.

        That is what Kaggle's archive unpacks to. Of several numbered ones, the last.

        Raises:
          UserError: there is none, or several, or it cannot be read.
        """
        self.folder = _checkpoint_folder(to_path(path, "checkpoint"))
        self._last: tuple[str, np.ndarray] | None = None  # the array that was read last
        with ocp.PyTreeCheckpointer() as checkpointer:
            # Orbax logs what is wrong with the file and gives None.
            metadata = checkpointer.metadata(absolute(self.folder)).item_metadata
        if metadata is None:
            raise UserError(f"{self.folder / METADATA} cannot be read: it is no Orbax checkpoint")
        self._keys: dict[str, tuple[str, ...]] = {}
        self._leaves: dict[str, Any] = {}
        for place, leaf in jax.tree_util.tree_leaves_with_path(metadata.tree):
            keys = tuple(str(getattr(key, "key", key)) for key in place)
            name = _name(keys, training_state="opt_state" in metadata.tree)
            if name is not None and hasattr(leaf, "shape"):
                self._keys[name], self._leaves[name] = keys, leaf
        if not self._keys:
            raise UserError(f"{self.folder} has no arrays of a Gemma decoder")

    @property
    def names(self) -> list[str]:
        """Names of all arrays, sorted."""
        return sorted(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array; UserError if there is none of that name."""
        return tuple(self._leaf(name).shape)

    def dtype(self, name: str) -> np.dtype:
        """Type of an array; UserError if there is none of that name."""
        return np.dtype(self._leaf(name).dtype)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """array[index]; nothing else is read. UserError if its file is damaged.

        The whole array is read, and held until the next one is, for the parts of other devices.
        """
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._restore(name)
        return self._last[1][index]

    def _restore(self, name: str) -> np.ndarray:
        self._leaf(name)
        keys, item, args_of = self._keys[name], {}, {}
        _put(item, keys, 0)
        _put(args_of, keys, ocp.RestoreArgs(restore_type=np.ndarray))
        # Restores what `item` has; the rest of the checkpoint is not read.
        args = ocp.args.PyTreeRestore(item=item, restore_args=args_of, partial_restore=True)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                restored = checkpointer.restore(absolute(self.folder), args=args)
        except (ValueError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.folder}: {name} cannot be read: {reason}") from error
        for key in keys:
            restored = restored[key]
        return restored

    def where(self, name: str) -> Path:
        """The checkpoint's folder, for errors."""
        return self.folder

    def _leaf(self, name: str) -> Any:
        if name not in self._leaves:
            raise UserError(f"{self.folder} has no array {name}.{nearest(name, self._leaves)}")
        return self._leaves[name]


def is_orbax(path: str | os.PathLike) -> bool:
    """Whether there is an Orbax checkpoint at the path or up to two folders below it."""
    return bool(_candidates(to_path(path)))


def _checkpoint_folder(path: Path) -> Path:
    folders = _candidates(path)
    if not folders:
        raise UserError(
            f"no Orbax checkpoint at {path}: no {METADATA} there, nor one or two folders below it"
        )
    by_first = {folder.relative_to(path).parts[:1]: folder for folder in folders}
    steps = [int(first[0]) for first in by_first if first and first[0].isdigit()]
    if len(folders) > 1 and len(steps) == len(folders):
        return by_first[(str(max(steps)),)]
    if len(folders) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in folders)
        raise UserError(f"{path} has several checkpoints: {names}; give the path of one")
    return folders[0]


def _candidates(path: Path) -> list[Path]:
    for depth in ("", "*/", "*/*/"):
        if folders := sorted(file.parent for file in path.glob(f"{depth}{METADATA}")):
            return folders
    return []


def _name(keys: tuple[str, ...], training_state: bool) -> str | None:
    """The one flat name, or None for what is no part of the text decoder."""
    if training_state and keys[0] != "params":
        return None
    name = _WRAPPERS.sub("", "/".join(keys))
    if _OTHER_MODALITIES.match(name):
        return None
    return name + "/w" if _BARE.search(name) else name


def _put(nested: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Sets nested[keys[0]][keys[1]]..., with dictionaries where there are none."""
    for key in keys[:-1]:
        nested = nested.setdefault(key, {})
    nested[keys[-1]] = value
