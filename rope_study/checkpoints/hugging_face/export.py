"""A decoder as a Hugging Face folder that Transformers loads: its config.json and its tensors.

A family is right if its config.json, read back, describes the same decoder; what no family gives
back is refused.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from rope_study import rotary
from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.checkpoints.hugging_face.families import FAMILIES
from rope_study.checkpoints.hugging_face.folder import spec_tables
from rope_study.checkpoints.hugging_face.rope import FULL, SLIDING, parameters_of, whole
from rope_study.checkpoints.hugging_face.tensor_files import INDEX_FILE, SINGLE_FILE
from rope_study.checkpoints.weight_map import (
    ParameterPath,
    TensorSpec,
    WeightMap,
    make_weight_map,
    parameter_at,
)
from rope_study.decoder import Decoder, DecoderConfig, LayerSpec
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError

CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
LONGEST = 131_072  # what a file says where neither the decoder nor its encoding knows


def export(
    decoder: Decoder,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    shard_bytes: int = 5 * 10**9,
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
    fields = config_fields(decoder.config)
    weight_map = make_weight_map(decoder.config, *spec_tables(decoder.config, "model."))
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    _write_json(folder / "config.json", fields | {"dtype": dtype})
    _write_tensors(folder, params, _shards(weight_map, params, shard_bytes))


# --- tensors ----------------------------------------------------------------------------------

# An array of the parameters, which of its layers (None: not stacked), and its place in a file.
Tensor = tuple[ParameterPath, int | None, TensorSpec]


def _shards(
    weight_map: WeightMap, params: Mapping[str, Any], shard_bytes: int
) -> list[list[Tensor]]:
    """All tensors in files of at most that size; no array is read."""
    shards: list[list[Tensor]] = [[]]
    size_of_last = 0
    for path, specs in weight_map.items():
        leaf = parameter_at(params, path)
        stacked = leaf.ndim > len(specs[0].axes)
        size = leaf.nbytes // len(specs)
        for i, spec in enumerate(specs):
            if shards[-1] and size_of_last + size > shard_bytes:
                shards.append([])
                size_of_last = 0
            shards[-1].append((path, i if stacked else None, spec))
            size_of_last += size
    return shards


def _write_tensors(folder: Path, params: Mapping[str, Any], shards: list[list[Tensor]]) -> None:
    """The files, and the index of several; one file's tensors are on the host at a time."""
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            spec.name: np.ascontiguousarray(spec.to_stored(_array(params, path, i)))
            for path, i, spec in shard
        }
        safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": index})


def _array(params: Mapping[str, Any], path: ParameterPath, i: int | None) -> np.ndarray:
    """One layer of the array at a path, or all of it, on the host."""
    leaf = parameter_at(params, path)
    return np.asarray(leaf if i is None else leaf[i])


def _write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- config.json ------------------------------------------------------------------------------


def config_fields(config: DecoderConfig) -> dict[str, Any]:
    """What config.json holds.

    Raises:
      UserError: no family expresses this decoder.
    """
    for kind in CLASSES:
        try:
            fields = _family_fields(kind, config)
            read_back = decoder_config(kind, fields)
        except UserError:
            continue
        if _comparable(read_back) == _comparable(config):
            return {"model_type": kind, "architectures": [CLASSES[kind]]} | fields
    layers = "; ".join(dict.fromkeys(map(str, config.pattern)))
    raise UserError(
        f"no model of Transformers expresses this decoder, so it cannot be exported: tried"
        f" {', '.join(CLASSES)} for layers {layers} with norm_offset={config.norm_offset},"
        f" activation={config.activation!r}, post_norms={config.post_norms}"
    )


def _comparable(config: DecoderConfig) -> tuple:
    """What must agree: all mathematics; encodings by their frequencies, queries by their scale."""
    common = dataclasses.replace(
        config, pattern=(LayerSpec(),), compute_dtype="float32", attention="reference",
        remat="none", scan=True, bos=None, source=None, trained_length=None,
    )  # fmt: skip
    return common, tuple(_comparable_layer(spec, config) for spec in config.layer_specs)


def _comparable_layer(spec: LayerSpec, config: DecoderConfig) -> tuple:
    shapes, encoding = config.of_layer(spec), spec.rotary
    if not isinstance(encoding, rotary.Encoding) or not encoding.relative or encoding.trained:
        raise UserError(f"{rotary.name_of(encoding)} is not one vector of frequencies")
    frequencies = encoding.inverse_frequencies(shapes.head_dim)
    rotation = tuple(np.round(frequencies, 15)), encoding.scaling
    rest = dataclasses.replace(
        spec, rotary=rotary.nope(), query_scale=None, keys_from=None, head_dim=None,
        kv_heads=None, mlp_hidden=None,
    )  # fmt: skip
    scale = spec.query_scale or LogitScale(shapes.head_dim**-0.5)
    sizes = shapes.head_dim, shapes.kv_heads, shapes.mlp_hidden
    return rest, rotation, scale, sizes, spec.keys_from


def _family_fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    """The file of one family for this decoder, as far as the family goes."""
    fields = _shape_fields(kind, config) | _window_fields(kind, config)
    fields |= _score_fields(kind, config) | _rope_fields(kind, config)
    return fields | (_gemma4_fields(config) if kind == "gemma4_text" else {})


def _shape_fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    newer_gemma = kind in ("gemma2", "gemma3_text", "gemma4_text")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.trained_length or LONGEST,
        "bos_token_id": config.bos,
        "hidden_activation" if newer_gemma else "hidden_act": (
            "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
        ),
    }


def _by_window(config: DecoderConfig) -> tuple[list[LayerSpec], list[LayerSpec]]:
    """(local layers, global layers)."""
    specs = config.layer_specs
    return [s for s in specs if s.window is not None], [s for s in specs if s.window is None]


def _window_fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    if "sliding_window" not in FAMILIES[kind].defaults:
        return {}
    local_specs, _ = _by_window(config)
    window = local_specs[0].window if local_specs else None
    if kind == "mistral":
        return {"sliding_window": window}
    fields: dict[str, Any] = {
        "sliding_window": window or 4096,
        "layer_types": [FULL if spec.window is None else SLIDING for spec in config.layer_specs],
    }
    return fields | ({"use_sliding_window": bool(local_specs)} if kind == "qwen3" else {})


def _score_fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    """Caps, and what queries are multiplied by."""
    fields: dict[str, Any] = {}
    if kind in ("gemma2", "gemma3_text", "gemma4_text"):
        fields["final_logit_softcapping"] = config.final_cap
    if kind in ("gemma2", "gemma3_text"):
        spec = config.layer_specs[0]
        fields["attn_logit_softcapping"] = getattr(spec.score_function, "cap", None)
        scale = spec.query_scale
        factor = scale.factor if isinstance(scale, LogitScale) else config.head_dim**-0.5
        fields["query_pre_attn_scalar"] = whole(factor**-2)
    return fields


def _rope_fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    """For Gemma 3 and 4 by type of layer."""
    if kind not in ("gemma3_text", "gemma4_text"):
        return {"rope_parameters": parameters_of(config.layer_specs[0].rotary)}
    local_specs, global_specs = _by_window(config)
    by_type = {SLIDING: local_specs or global_specs, FULL: global_specs or local_specs}
    return {
        "rope_parameters": {
            layer_type: parameters_of(specs[0].rotary) for layer_type, specs in by_type.items()
        }
    }


def _gemma4_fields(config: DecoderConfig) -> dict[str, Any]:
    specs = config.layer_specs
    shapes = [config.of_layer(spec) for spec in specs]
    _, global_specs = _by_window(config)
    return {
        "per_layer_config": {
            str(i): {"head_dim": shape.head_dim, "num_key_value_heads": shape.kv_heads}
            for i, shape in enumerate(shapes)
            if (shape.head_dim, shape.kv_heads) != (config.head_dim, config.kv_heads)
        },
        "attention_k_eq_v": any(spec.keys_as_values for spec in global_specs),
        "num_kv_shared_layers": sum(spec.keys_from is not None for spec in specs),
        "use_double_wide_mlp": any(shape.mlp_hidden != config.mlp_hidden for shape in shapes),
        "hidden_size_per_layer_input": config.per_layer_dim,
        "vocab_size_per_layer_input": config.per_layer_vocab_size or config.vocab_size,
    }
