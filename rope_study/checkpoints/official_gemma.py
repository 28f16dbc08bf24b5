"""Official Gemma checkpoints for Flax (Kaggle's "flax" variations): which arrays, and reading them.

Nothing is read but names and shapes until `restore` or `read` asks for arrays. Gemma 1, 2 and 3;
docs/official_gemma.md has the trees and where each fact comes from. D width, N heads, K kv_heads,
H head_dim, F mlp_hidden, V vocabulary.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rope_study.errors import UserError, nearest

METADATA = "_METADATA"  # every Orbax checkpoint of a tree has this file


# --- what is on disk --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is still on disk."""

    folder: Path
    keys: tuple[str, ...]  # its place in the saved tree
    shape: tuple[int, ...]
    dtype: np.dtype


Tree = Mapping[str, Stored]


def is_official(path: str | os.PathLike) -> bool:
    """Whether `read_tree` would find an Orbax checkpoint there."""
    return bool(_candidates(Path(path)))


def read_tree(path: str | os.PathLike) -> dict[str, Stored]:
    """Every array of the text decoder by one flat name, such as "layer_0/attn/q_einsum/w".

    The names are the same for the nested trees ({"layer_0": {"attn": ...}}) and the flat ones
    ({"transformer/layer_0/attn/q_einsum": {"w": ...}}), bare or under "params" in a training
    state. Arrays of image and audio encoders are left out.

    Args:
      path: an Orbax checkpoint, or a folder with one in it or in a folder of it: what Kaggle's
        archive unpacks to. Of several numbered ones, the last.

    Raises:
      UserError: there is none, or several, or it cannot be read.
    """
    folder = _find(Path(path))
    with ocp.PyTreeCheckpointer() as checkpointer:
        # Orbax logs what is wrong with the file and gives None.
        metadata = checkpointer.metadata(folder.absolute()).item_metadata
    if metadata is None:
        raise UserError(f"{folder / METADATA} cannot be read: it is no Orbax checkpoint")
    metadata, tree = metadata.tree, {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(metadata):
        keys = tuple(str(getattr(key, "key", key)) for key in place)
        name = _name(keys, training_state="opt_state" in metadata)
        if name is not None and hasattr(leaf, "shape"):
            tree[name] = Stored(folder, keys, tuple(leaf.shape), np.dtype(leaf.dtype))
    if not tree:
        raise UserError(f"{folder} has no arrays of a Gemma decoder")
    return tree


def _find(path: Path) -> Path:
    found = _candidates(path)
    if not found:
        raise UserError(
            f"no Orbax checkpoint at {path}: no {METADATA} there, nor one or two folders below it"
        )
    steps = {folder.relative_to(path).parts[:1]: folder for folder in found}
    numbers = [int(first[0]) for first in steps if first and first[0].isdigit()]
    if len(found) > 1 and len(numbers) == len(found):
        return steps[(str(max(numbers)),)]
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path} has several checkpoints: {names}; give the path of one")
    return found[0]


def _candidates(path: Path) -> list[Path]:
    for depth in (".", "*", "*/*"):
        if found := sorted(file.parent for file in path.glob(f"{depth}/{METADATA}")):
            return found
    return []


# In front of the names of the flat trees, and around trees that were saved with what holds them.
_WRAPPERS = re.compile("^(params/)?(transformer/)?")
_OTHER_MODALITIES = re.compile("SigLiP|vision_encoder/|audio_encoder/|embedder/(mm_|audio_)")
# The nested trees have these arrays bare, the flat ones in a dict.
_BARE = re.compile("/mlp/(gating_einsum|linear)$")


def _name(keys: tuple[str, ...], training_state: bool) -> str | None:
    """The one flat name, or None for what is no part of the text decoder."""
    if training_state and keys[0] != "params":
        return None
    name = _WRAPPERS.sub("", "/".join(keys))
    if _OTHER_MODALITIES.match(name):
        return None
    return name + "/w" if _BARE.search(name) else name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def restore(
    tree: Tree,
    names: Iterable[str],
    *,
    sharding: Sharding | Mapping[str, Sharding] | None = None,
    dtype=None,
) -> dict:
    """Reads these arrays and no other, as they are on disk.

    Args:
      tree: from `read_tree`.
      names: official names, keys of `tree`.
      sharding: of the official layout, one for all or by name: gives jax.Arrays of which every
        process holds its part. Without it NumPy arrays.
      dtype: what to cast to; as on disk where not given.

    Raises:
      UserError: no such array, or its file is damaged.
    """
    names = list(names)
    for name in names:
        _check_present(tree, name)
    item: dict = {}
    restore_args: dict = {}
    for name in names:
        place = sharding[name] if isinstance(sharding, Mapping) else sharding
        _put(item, tree[name].keys, 0)
        _put(restore_args, tree[name].keys, _restore_args(place, dtype))
    folder = tree[names[0]].folder
    # Restores what `item` has; the rest of the checkpoint is not read.
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder.absolute(), args=args)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: {', '.join(names)}: {_first_line(error)}") from error
    return {name: _get(restored, tree[name].keys) for name in names}


def _restore_args(sharding: Sharding | None, dtype) -> ocp.RestoreArgs:
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=dtype)


def _put(nested: dict, keys: tuple[str, ...], value) -> None:
    for key in keys[:-1]:
        nested = nested.setdefault(key, {})
    nested[keys[-1]] = value


def _get(nested: Mapping, keys: tuple[str, ...]):
    for key in keys:
        nested = nested[key]
    return nested


# --- which array is which ---------------------------------------------------------------------

# This project's arrays, one letter an axis.
AXES = {
    "embedding": "VD",
    "final_norm": "D",
    "attention_norm": "D",
    "q": "DNH",
    "k": "DKH",
    "v": "DKH",
    "o": "NHD",
    "mlp_norm": "D",
    "gate": "DF",
    "up": "DF",
    "down": "FD",
    "post_attention_norm": "D",
    "post_mlp_norm": "D",
    "q_norm": "H",
    "k_norm": "H",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of this project's arrays is in an official checkpoint."""

    name: str
    axes: str  # as in AXES, in the official order
    index: int | None = None  # which of the `count` arrays stacked in front of the axes
    count: int = 1

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape on disk."""
        stacked = () if self.index is None else (self.count,)
        return (*stacked, *(sizes[axis] for axis in self.axes))

    def take(self, stored, ours: str):
        """This project's array, with the axes `ours`, out of the official one; NumPy or JAX."""
        part = stored if self.index is None else stored[self.index]
        return part.transpose([self.axes.index(axis) for axis in ours])

    def sharding(self, ours: str, sharding: Sharding) -> Sharding:
        """How to split the official array so that `take` gives `sharding` without moving data."""
        if not isinstance(sharding, NamedSharding):
            return sharding
        spec = dict(zip(ours, sharding.spec, strict=False))
        stacked = () if self.index is None else (None,)
        axes = (spec.get(axis) for axis in self.axes)
        return NamedSharding(sharding.mesh, PartitionSpec(*stacked, *axes))


TOP = {
    "embedding": Source("embedder/input_embedding", "VD"),
    "final_norm": Source("final_norm/scale", "D"),
}
# Names inside layer_i/. Every norm's scale is added to 1, as in this project.
LAYER = {
    "attention_norm": Source("pre_attention_norm/scale", "D"),
    "o": Source("attn/attn_vec_einsum/w", "NHD"),
    "mlp_norm": Source("pre_ffw_norm/scale", "D"),
    "down": Source("mlp/linear/w", "FD"),
}
SPLIT_QKV = {
    "q": Source("attn/q_einsum/w", "NDH"),
    "k": Source("attn/kv_einsum/w", "KDH", 0, 2),
    "v": Source("attn/kv_einsum/w", "KDH", 1, 2),
}
# Where there are as many key/value heads as heads (Gemma 7B).
FUSED_QKV = {
    "q": Source("attn/qkv_einsum/w", "NDH", 0, 3),
    "k": Source("attn/qkv_einsum/w", "KDH", 1, 3),
    "v": Source("attn/qkv_einsum/w", "KDH", 2, 3),
}
GATING = {
    "gate": Source("mlp/gating_einsum/w", "DF", 0, 2),
    "up": Source("mlp/gating_einsum/w", "DF", 1, 2),
}
# Gemma 2 9B and 27B, and every Gemma 3.
TRANSPOSED_GATING = {
    "gate": Source("mlp/gating_einsum/w", "FD", 0, 2),
    "up": Source("mlp/gating_einsum/w", "FD", 1, 2),
}
POST_NORMS = {  # from Gemma 2 on
    "post_attention_norm": Source("post_attention_norm/scale", "D"),
    "post_mlp_norm": Source("post_ffw_norm/scale", "D"),
}
QK_NORMS = {  # Gemma 3
    "q_norm": Source("attn/_query_norm/scale", "H"),
    "k_norm": Source("attn/_key_norm/scale", "H"),
}


def sources(shapes: Mapping, layer: int | None = None) -> dict[str, Source]:
    """Where each array of a layer is, or without `layer` those outside the layers.

    Args:
      shapes: from `infer_shapes`.
      layer: 0 is the first.
    """
    if layer is None:
        return TOP
    chosen = LAYER | (FUSED_QKV if shapes["fused_qkv"] else SPLIT_QKV)
    chosen = chosen | (TRANSPOSED_GATING if shapes["transposed_gating"] else GATING)
    if shapes["generation"] >= 2:
        chosen = chosen | POST_NORMS
    if shapes["generation"] >= 3:
        chosen = chosen | QK_NORMS
    return {
        ours: dataclasses.replace(source, name=f"layer_{layer}/{source.name}")
        for ours, source in chosen.items()
    }


def infer_shapes(tree: Tree) -> dict:
    """What the shapes tell about the decoder, after a check of every array of the tree.

    Returns:
      vocab_size, width, layers, heads, kv_heads, head_dim, mlp_hidden as in DecoderConfig;
      generation (1, 2 or 3); fused_qkv and transposed_gating, which `sources` needs.

    Raises:
      UserError: an array is missing, or too many, or of another shape; or it is another model.
    """
    _check_generation(tree)
    fused = "layer_0/attn/qkv_einsum/w" in tree
    vocab_size, width = _shape(tree, "embedder/input_embedding", 2)
    heads, head_dim, _ = _shape(tree, "layer_0/attn/attn_vec_einsum/w", 3)
    kv_heads = heads if fused else _shape(tree, "layer_0/attn/kv_einsum/w", 4)[1]
    mlp_hidden, _ = _shape(tree, "layer_0/mlp/linear/w", 2)
    gating = _shape(tree, "layer_0/mlp/gating_einsum/w", 3)
    post_norms, qk_norms = (
        any(source.name in name for name in tree for source in norms.values())
        for norms in (POST_NORMS, QK_NORMS)
    )
    shapes = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": 1 + max(int(name.split("/")[0][6:]) for name in tree if _in_layer(name)),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_hidden": mlp_hidden,
        "generation": 3 if qk_norms else 2 if post_norms else 1,
        "fused_qkv": fused,
        # No released Gemma has mlp_hidden = width; only there would this be a guess.
        "transposed_gating": gating != (2, width, mlp_hidden),
    }
    _check(tree, shapes)
    return shapes


def _in_layer(name: str) -> bool:
    return re.match(r"layer_\d+/", name) is not None


def _check_generation(tree: Tree) -> None:
    """Refuses trees of models that are not Gemma 1, 2 or 3."""
    folder = next(iter(tree.values())).folder
    for mark, what in (
        ("skip_scale", "Gemma 4, whose global layers have heads of another size"),
        ("altup", "Gemma 3n"),
        ("stacked_layers/", "a checkpoint with stacked layers"),
        ("SimulateQuantized", "a quantized checkpoint"),
    ):
        if found := next((name for name in tree if mark in name), None):
            raise UserError(
                f"{folder}: {found} is of {what}; supported are Gemma 1, 2 and 3, not quantized"
            )


def _check(tree: Tree, shapes: Mapping) -> None:
    """Every array that `sources` names is there with its shape, and no other."""
    fields = ("vocab_size", "width", "heads", "kv_heads", "head_dim", "mlp_hidden")
    sizes = dict(zip("VDNKHF", (shapes[field] for field in fields), strict=True))
    left = dict(tree)
    for layer in (None, *range(shapes["layers"])):
        for source in sources(shapes, layer).values():
            wanted = source.shape(sizes)
            if _check_present(tree, source.name).shape != wanted:
                raise UserError(
                    f"{tree[source.name].folder}: {source.name} has the shape"
                    f" {tree[source.name].shape}, not {wanted}"
                )
            left.pop(source.name, None)
    for name, stored in left.items():
        raise UserError(
            f"{stored.folder}: {name} is no array of Gemma {shapes['generation']};"
            f" {len(left)} such arrays"
        )


def _check_present(tree: Tree, name: str) -> Stored:
    if name not in tree:
        folder = next(iter(tree.values())).folder
        raise UserError(f"{folder} has no array {name}.{nearest(name, tree)}")
    return tree[name]


def _shape(tree: Tree, name: str, rank: int) -> tuple[int, ...]:
    stored = _check_present(tree, name)
    if len(stored.shape) != rank:
        raise UserError(f"{stored.folder}: {name} has the shape {stored.shape}, not {rank} axes")
    return stored.shape


# --- both -------------------------------------------------------------------------------------


def read(
    tree: Tree,
    wanted: Mapping[str, Source],
    *,
    shardings: Mapping[str, Sharding] | None = None,
    dtype=np.float32,
) -> dict:
    """This project's arrays, from one official array at a time, each read once.

    Args:
      tree: from `read_tree`.
      wanted: from `sources`, or a part of it.
      shardings: of this project's arrays by name; without them NumPy arrays.
      dtype: what to cast to; as on disk where None.

    Returns:
      {this project's name: array}, with the axes that AXES tells.
    """
    together: dict[str, list[str]] = {}
    for ours, source in wanted.items():
        together.setdefault(source.name, []).append(ours)
    found = {}
    for name, group in together.items():
        place = None
        if shardings is not None:
            place = wanted[group[0]].sharding(AXES[group[0]], shardings[group[0]])
        stored = restore(tree, [name], sharding=place, dtype=dtype)[name]
        for ours in group:
            take = _taker(wanted[ours], AXES[ours], None if place is None else shardings[ours])
            found[ours] = take(stored)
    return {ours: found[ours] for ours in wanted}


def _taker(source: Source, ours: str, sharding: Sharding | None) -> Callable:
    if sharding is None:
        return lambda stored: source.take(stored, ours)
    return jax.jit(lambda stored: source.take(stored, ours), out_shardings=sharding)
