"""Hugging Face folders, config.json with safetensors, and the names of the tensors in them."""

import dataclasses
import functools
import os
import re
from pathlib import Path

import numpy as np

from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.checkpoints.hugging_face.fields import read_fields
from rope_study.checkpoints.hugging_face.tensor_files import TensorFiles
from rope_study.checkpoints.weight_map import (
    OpenCheckpoint,
    TensorSpec,
    WeightMap,
    make_weight_map,
)
from rope_study.decoder import DecoderConfig
from rope_study.errors import UserError
from rope_study.files.paths import to_path

# Axes: D d_model, N query heads, K key heads, H head_dim, F mlp_hidden, V vocabulary, L layers,
# P per_layer_dim.
_EMBEDDING = "embed_tokens.weight"
TOP = {
    "embedding": TensorSpec(_EMBEDDING, "vd", ("v", "d")),
    "final_norm": TensorSpec("norm.weight", "d", ("d",)),
    "unembedding": TensorSpec("lm_head.weight", "vd", ("v", "d")),
    "per_layer_embedding": TensorSpec("embed_tokens_per_layer.weight", "vlp", ("v", "lp")),
    "per_layer_projection": TensorSpec("per_layer_model_projection.weight", "dlp", ("lp", "d")),
    "per_layer_projection_norm": TensorSpec("per_layer_projection_norm.weight", "p", ("p",)),
}
LAYER = {
    "attention_norm": TensorSpec("layers.{i}.input_layernorm.weight", "d", ("d",)),
    "q": TensorSpec("layers.{i}.self_attn.q_proj.weight", "dnh", ("nh", "d")),
    "k": TensorSpec("layers.{i}.self_attn.k_proj.weight", "dkh", ("kh", "d")),
    "v": TensorSpec("layers.{i}.self_attn.v_proj.weight", "dkh", ("kh", "d")),
    "o": TensorSpec("layers.{i}.self_attn.o_proj.weight", "nhd", ("d", "nh")),
    "q_norm": TensorSpec("layers.{i}.self_attn.q_norm.weight", "h", ("h",)),
    "k_norm": TensorSpec("layers.{i}.self_attn.k_norm.weight", "h", ("h",)),
    "mlp_norm": TensorSpec("layers.{i}.post_attention_layernorm.weight", "d", ("d",)),
    "gate": TensorSpec("layers.{i}.mlp.gate_proj.weight", "df", ("f", "d")),
    "up": TensorSpec("layers.{i}.mlp.up_proj.weight", "df", ("f", "d")),
    "down": TensorSpec("layers.{i}.mlp.down_proj.weight", "fd", ("d", "f")),
    "per_layer_gate": TensorSpec("layers.{i}.per_layer_input_gate.weight", "dp", ("p", "d")),
    "per_layer_out": TensorSpec("layers.{i}.per_layer_projection.weight", "pd", ("d", "p")),
    "per_layer_norm": TensorSpec("layers.{i}.post_per_layer_input_norm.weight", "d", ("d",)),
    "layer_scalar": TensorSpec("layers.{i}.layer_scalar", "o", ("o",)),
}
# With norms on both sides the name of the one after attention means just that.
POST_NORMS = {
    "post_attention_norm": TensorSpec("layers.{i}.post_attention_layernorm.weight", "d", ("d",)),
    "mlp_norm": TensorSpec("layers.{i}.pre_feedforward_layernorm.weight", "d", ("d",)),
    "post_mlp_norm": TensorSpec("layers.{i}.post_feedforward_layernorm.weight", "d", ("d",)),
}


# Names of tensors that say what a folder is instead.
FOREIGN = {
    r"\.lora_[AB]\.": "a LoRA adapter: merge it into its model, and give that folder",
    r"^(model\.)?tok_embeddings\.": "Mistral's or Meta's own format: give the folder that Hugging"
    " Face's conversion writes",
    r"\.scales$": "weights quantised by MLX: load the unquantised checkpoint",
    r"\.qweight$": "weights quantised by GPTQ or AWQ: load the unquantised checkpoint",
}


def open_checkpoint(folder: str | os.PathLike) -> OpenCheckpoint:
    """The checkpoint in a folder; nothing is read but config.json, names and shapes.

    Raises:
      UserError: an unsupported model, or files that are missing, damaged or not safetensors.
    """
    folder = to_path(folder, "checkpoint")
    kind, fields, wrapped = read_fields(folder)
    config = decoder_config(kind, fields, str(folder / "config.json"))
    files = TensorFiles(folder)
    prefix = _prefix(files, folder)
    _check_tie(config, files, prefix + _EMBEDDING, folder)
    weight_map = functools.partial(_weight_map, prefix=prefix, files=files)
    return OpenCheckpoint(folder.name, config, weight_map, files, _ignored(config, prefix, wrapped))


def _prefix(files: TensorFiles, folder: Path) -> str:
    """What comes before the text model's names, such as "model." or "model.language_model."."""
    for mark, what in FOREIGN.items():
        if foreign := next((name for name in files.names if re.search(mark, name)), None):
            raise UserError(f"{folder}: tensor {foreign!r} is of {what}")
    tables = [name for name in files.names if re.search(rf"(^|\.){re.escape(_EMBEDDING)}$", name)]
    if len(tables) != 1:
        here = f"several are named so: {', '.join(tables)}" if tables else "there is none"
        raise UserError(
            f"{folder}: one tensor named ...{_EMBEDDING} is needed, the embedding, and {here}"
            f" ({len(files.names)} tensors, such as {next(iter(files.names), None)!r})"
        )
    return tables[0].removesuffix(_EMBEDDING)


def _check_tie(config: DecoderConfig, files: TensorFiles, embedding: str, folder: Path) -> None:
    """Refuses an output table that is not the embedding where the configuration ties the two."""
    heads = _output_tables(files) if config.tied else []
    for head in heads:
        if not _equal(files, head, embedding):
            raise UserError(
                f"{files.where(head)}: tensor {head!r} differs from {embedding!r}, and"
                f" tie_word_embeddings of {folder / 'config.json'} is true, as when left out: set"
                " it to false if the output table was trained apart, or remove the tensor"
            )


def _equal(files: TensorFiles, name: str, other: str, rows: int = 4096) -> bool:
    """Whether two tensors have the same shape and values; a block of rows is read at a time."""
    shape = files.shape(name)
    if shape != files.shape(other):
        return False
    blocks = [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
    return all(np.array_equal(files.read(name, (b,)), files.read(other, (b,))) for b in blocks)


def _output_tables(files: TensorFiles) -> list[str]:
    return [name for name in files.names if re.search(r"(^|\.)lm_head\.weight$", name)]


def _weight_map(config: DecoderConfig, prefix: str, files: TensorFiles) -> WeightMap:
    """Where every array is in files of that prefix; the output table stands beside the model."""
    top, layer = spec_tables(config, prefix)
    heads = _output_tables(files)
    if not config.tied and len(heads) == 1:
        top["unembedding"] = dataclasses.replace(TOP["unembedding"], name=heads[0])
    return make_weight_map(config, top, layer)


def spec_tables(
    config: DecoderConfig, prefix: str
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """The arrays that belong to no layer, and those of layer {i}, under names of that prefix."""

    def prefixed(table: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        return {
            key: dataclasses.replace(spec, name=prefix + spec.name) for key, spec in table.items()
        }

    top = prefixed(TOP) | {"unembedding": TOP["unembedding"]}
    return top, prefixed(LAYER | POST_NORMS if config.post_norms else LAYER)


def _ignored(config: DecoderConfig, prefix: str, wrapped: bool) -> re.Pattern:
    """Tensors that are right to leave out."""
    patterns = [r"rotary_emb\.inv_freq$"]  # written by old versions, computed here
    if config.tied:
        patterns.append(r"^(.*\.)?lm_head\.weight$")  # a second copy, by _check_tie
    # Layers that read another's keys have weights of their own in released files, unused.
    layer = rf"^{re.escape(prefix)}layers\."
    for i, spec in enumerate(config.layer_specs):
        if spec.keys_from is not None:
            patterns.append(rf"{layer}{i}\.self_attn\.[kv]_(proj|norm)\.weight$")
    if wrapped:
        patterns.append(rf"^(?!{re.escape(prefix)})")  # other modalities
    return re.compile("|".join(patterns))
