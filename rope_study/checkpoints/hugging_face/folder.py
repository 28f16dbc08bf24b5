"""Hugging Face folders: config.json with safetensors in, and out again."""

import functools
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from rope_study.checkpoints.hugging_face import config as hf_config
from rope_study.checkpoints.hugging_face import export as hf_export
from rope_study.checkpoints.hugging_face.tensor_files import TensorFiles
from rope_study.checkpoints.weight_map import Located, Released, Stored, locate
from rope_study.checkpoints.weight_map import Path as ArrayPath
from rope_study.decoder import Decoder, DecoderConfig
from rope_study.errors import UserError

# Axes: D width, N query heads, K key heads, H head_dim, F mlp_hidden, V vocabulary, L layers,
# P per_layer_dim.
_EMBEDDING = "embed_tokens.weight"
TOP = {
    "embedding": Stored(_EMBEDDING, "vd", ("v", "d")),
    "final_norm": Stored("norm.weight", "d", ("d",)),
    "unembedding": Stored("lm_head.weight", "vd", ("v", "d")),
    "per_layer_embedding": Stored("embed_tokens_per_layer.weight", "vlp", ("v", "lp")),
    "per_layer_projection": Stored("per_layer_model_projection.weight", "dlp", ("lp", "d")),
    "per_layer_projection_norm": Stored("per_layer_projection_norm.weight", "p", ("p",)),
}
LAYER = {
    "attention_norm": Stored("layers.{i}.input_layernorm.weight", "d", ("d",)),
    "q": Stored("layers.{i}.self_attn.q_proj.weight", "dnh", ("nh", "d")),
    "k": Stored("layers.{i}.self_attn.k_proj.weight", "dkh", ("kh", "d")),
    "v": Stored("layers.{i}.self_attn.v_proj.weight", "dkh", ("kh", "d")),
    "o": Stored("layers.{i}.self_attn.o_proj.weight", "nhd", ("d", "nh")),
    "q_norm": Stored("layers.{i}.self_attn.q_norm.weight", "h", ("h",)),
    "k_norm": Stored("layers.{i}.self_attn.k_norm.weight", "h", ("h",)),
    "mlp_norm": Stored("layers.{i}.post_attention_layernorm.weight", "d", ("d",)),
    "gate": Stored("layers.{i}.mlp.gate_proj.weight", "df", ("f", "d")),
    "up": Stored("layers.{i}.mlp.up_proj.weight", "df", ("f", "d")),
    "down": Stored("layers.{i}.mlp.down_proj.weight", "fd", ("d", "f")),
    "per_layer_gate": Stored("layers.{i}.per_layer_input_gate.weight", "dp", ("p", "d")),
    "per_layer_out": Stored("layers.{i}.per_layer_projection.weight", "pd", ("d", "p")),
    "per_layer_norm": Stored("layers.{i}.post_per_layer_input_norm.weight", "d", ("d",)),
    "layer_scalar": Stored("layers.{i}.layer_scalar", "o", ("o",)),
}
# With norms on both sides the name of the one after attention means just that.
POST_NORMS = {
    "post_attention_norm": Stored("layers.{i}.post_attention_layernorm.weight", "d", ("d",)),
    "mlp_norm": Stored("layers.{i}.pre_feedforward_layernorm.weight", "d", ("d",)),
    "post_mlp_norm": Stored("layers.{i}.post_feedforward_layernorm.weight", "d", ("d",)),
}


def open_checkpoint(folder: str | os.PathLike) -> Released:
    """The checkpoint in a folder; nothing is read but config.json, names and shapes.

    Raises:
      UserError: an unsupported model, or files that are missing, damaged or not safetensors.
    """
    folder = Path(folder).expanduser()
    kind, fields, wrapped = hf_config.read_fields(folder)
    config = hf_config.decoder_config(kind, fields, str(folder / "config.json"))
    files = TensorFiles(folder)
    prefix = _prefix(files, folder)
    find = functools.partial(_locate, prefix=prefix, files=files)
    return Released(folder.name, config, find, files, _ignored(config, prefix, wrapped))


def _prefix(files: TensorFiles, folder: Path) -> str:
    """What comes before the text model's names, such as "model." or "model.language_model."."""
    found = [name for name in files.names if re.search(rf"(^|\.){re.escape(_EMBEDDING)}$", name)]
    if len(found) != 1:
        raise UserError(f"{folder}: no tensor named ...{_EMBEDDING}, or several: {found}")
    return found[0].removesuffix(_EMBEDDING)


def _locate(config: DecoderConfig, prefix: str, files: TensorFiles) -> Located:
    """Where every array is in files of that prefix; the output table stands beside the model."""
    top, layer = tables(config, prefix)
    heads = [name for name in files.names if name.endswith("lm_head.weight")]
    if not config.tied and len(heads) == 1:
        top["unembedding"] = Stored(heads[0], "vd", ("v", "d"))
    return locate(config, top, layer)


def tables(config: DecoderConfig, prefix: str) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Names of the arrays that belong to no layer, and of those of layer {i}."""

    def named(table: dict[str, Stored]) -> dict[str, Stored]:
        return {
            key: Stored(prefix + stored.name, stored.ours, stored.theirs)
            for key, stored in table.items()
        }

    top = named(TOP) | {"unembedding": TOP["unembedding"]}
    return top, named(LAYER | POST_NORMS if config.post_norms else LAYER)


def _ignored(config: DecoderConfig, prefix: str, wrapped: bool) -> re.Pattern:
    """Tensors that are right to leave out."""
    alone = [r"rotary_emb\.inv_freq$"]  # written by old versions, computed here
    if config.tied:
        alone.append(r"^(.*\.)?lm_head\.weight$")  # a second copy of the embedding
    # Layers that read another's keys have weights of their own in released files, unused.
    for i, spec in enumerate(config.layer_specs):
        if spec.keys_from is not None:
            alone.append(rf"^{re.escape(prefix)}layers\.{i}\.self_attn\.[kv]_(proj|norm)\.weight$")
    if wrapped:
        alone.append(rf"^(?!{re.escape(prefix)})")  # other senses
    return re.compile("|".join(alone))


def export(
    decoder: Decoder, params: dict, folder: str | os.PathLike, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a decoder as a Hugging Face folder that Transformers loads.

    Args:
      decoder, params: as checkpoints.load gives them.
      folder: a new one, or an empty one.
      shard_bytes: the largest file.

    Raises:
      UserError: an architecture that no supported family expresses, or a folder with files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; nothing was written: give a new folder")
    fields = hf_export.config_fields(decoder.config)
    located = locate(decoder.config, *tables(decoder.config, "model."))
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    _write_json(folder / "config.json", fields | {"dtype": dtype})
    shards, index = _shards(located, params, shard_bytes), {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            stored.name: np.ascontiguousarray(stored.to_theirs(_array(params, path, i)))
            for path, i, stored in shard
        }
        safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        about = {"metadata": {"total_size": total}, "weight_map": index}
        _write_json(folder / "model.safetensors.index.json", about)


# An array of the parameters, which of its layers (None: not stacked), and its place in a file.
Tensor = tuple[ArrayPath, int | None, Stored]


def _shards(located: Located, params: dict, shard_bytes: int) -> list[list[Tensor]]:
    """All tensors in files of at most that size; no array is read."""
    shards, held = [[]], 0
    for path, places in located.items():
        leaf = _leaf(params, path)
        stacked = leaf.ndim > len(places[0].ours)
        size = leaf.nbytes // len(places)
        for i, stored in enumerate(places):
            if shards[-1] and held + size > shard_bytes:
                shards.append([])
                held = 0
            shards[-1].append((path, i if stacked else None, stored))
            held += size
    return shards


def _array(params: dict, path: ArrayPath, i: int | None) -> np.ndarray:
    """One layer of the array at a path, or all of it, on the host."""
    leaf = _leaf(params, path)
    return np.asarray(leaf if i is None else leaf[i])


def _leaf(params: dict, path: ArrayPath) -> jax.Array:
    return functools.reduce(lambda tree, key: tree[key], path, params)


def _write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
