"""A decoder as a Hugging Face folder that Transformers loads: its config.json and its tensors.

A family is right if its config.json, read back, describes the same decoder; what no family gives
back is refused.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rope_study import rotary
from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.checkpoints.hugging_face.families import FAMILIES
from rope_study.checkpoints.hugging_face.folder import open_checkpoint, spec_tables
from rope_study.checkpoints.hugging_face.rope import FULL, SLIDING, parameters_of, whole
from rope_study.checkpoints.hugging_face.tensor_files import INDEX_FILE, SINGLE_FILE
from rope_study.checkpoints.weight_map import (
    ParameterPath,
    TensorSpec,
    WeightMap,
    make_weight_map,
    parameter_at,
)
from rope_study.checks import checked
from rope_study.data import Tokenizer
from rope_study.decoder import Decoder, DecoderConfig, LayerSpec, check_params, check_vocabulary
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError
from rope_study.files import atomic, check_new_folder, write_atomically
from rope_study.files.paths import to_path
from rope_study.sharding import is_main_process, on_main, to_host

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


@checked
def export(
    decoder: Decoder,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    shard_bytes: float = 5e9,
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes a decoder as a Hugging Face folder that Transformers loads.

    The folder is there only once all of it is written, and has been read back and compared.

    Args:
      decoder, params: as checkpoints.load gives them.
      folder: a new one, or an empty one; ~ is expanded.
      shard_bytes: of the largest file.
      tokenizer: the model's, of checkpoints.load_tokenizer; written beside it, so that text can be
        generated from the folder alone.

    Raises:
      UserError: an architecture that no supported family expresses, a folder with files in it, or
        parameters or a tokenizer of another model.
    """
    config = decoder.config
    if tokenizer is not None:
        check_vocabulary(config, tokenizer)
        config = dataclasses.replace(config, bos=tokenizer.bos)
    check_params(config, params, more=False)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    target = to_path(on_main(lambda: str(check_new_folder(folder, "folder", size))))
    fields = config_fields(config)
    dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in jax.tree.leaves(params)])
    weight_map = make_weight_map(config, *spec_tables(config, "model."))
    with atomic(target) if is_main_process() else contextlib.nullcontext(target) as part:
        if is_main_process():
            part.mkdir()
            # Transformers casts everything to the type that it finds here: the widest.
            write_atomically(part / "config.json", _json(fields | {"dtype": str(dtype)}))
        _write_tensors(part, params, _shards(weight_map, params, shard_bytes))
        if tokenizer is not None and is_main_process():
            tokenizer.export(part)
        _compare(part, config, params)


def _compare(folder: Path, config: DecoderConfig, params: Mapping[str, Any]) -> None:
    """Reads the folder back, a tensor at a time; UserError where it is not what was written.

    Every process takes part, as arrays are gathered from all; only the main one has the folder.
    """
    written = open_checkpoint(folder) if is_main_process() else None
    if written is not None and _comparable(written.config) != _comparable(config):
        raise UserError(f"{folder} does not describe the decoder that was exported")
    weight_map = make_weight_map(config, *spec_tables(config, "model."))
    for path, specs in weight_map.items():
        for i, spec in enumerate(specs):
            leaf = parameter_at(params, path)
            expected = _array(params, path, i if leaf.ndim > len(spec.axes) else None)
            if written is None:
                continue
            whole_array = tuple(slice(0, size) for size in expected.shape)
            read = spec.read(written.reader, expected.shape, whole_array)
            if read.dtype != expected.dtype or read.tobytes() != expected.tobytes():
                raise UserError(f"{folder}: tensor {spec.name!r} differs from what was exported")


# --- tensors ----------------------------------------------------------------------------------

# An array of the parameters, which of its layers (None: not stacked), and its place in a file.
Tensor = tuple[ParameterPath, int | None, TensorSpec]


def _shards(
    weight_map: WeightMap, params: Mapping[str, Any], shard_bytes: float
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
        if is_main_process():
            safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1 and is_main_process():
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomically(folder / INDEX_FILE, _json(content))


def _array(params: Mapping[str, Any], path: ParameterPath, i: int | None) -> np.ndarray:
    """One layer of the array at a path, or all of it, on the host."""
    leaf = parameter_at(params, path)
    return to_host(leaf if i is None else leaf[i])


def _json(value: dict) -> str:
    return json.dumps(value, indent=2) + "\n"


# --- config.json ------------------------------------------------------------------------------


def config_fields(config: DecoderConfig) -> dict[str, Any]:
    """What config.json holds.

    Raises:
      UserError: no family expresses this decoder.
    """
    reasons = []
    for kind in CLASSES:
        try:
            fields = _family_fields(kind, config)
            read_back = decoder_config(kind, fields)
        except UserError as error:
            reasons.append(str(error))
            continue
        if _comparable(read_back) == _comparable(config):
            return {"model_type": kind, "architectures": [CLASSES[kind]]} | fields
    if len(reasons) == len(CLASSES) and len(set(reasons)) == 1:
        raise UserError(
            "no model of Transformers expresses this decoder, so it cannot be exported:"
            f" {reasons[0]}"
        )
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
        document_start=None, document_end=None,
    )  # fmt: skip
    return common, tuple(_comparable_layer(spec, config) for spec in config.layer_specs)


def _comparable_layer(spec: LayerSpec, config: DecoderConfig) -> tuple:
    shapes, encoding = config.of_layer(spec), spec.rotary
    if not isinstance(encoding, rotary.Encoding) or not encoding.relative or encoding.trained:
        raise UserError(f"{rotary.name_of(encoding)} is not one vector of frequencies")
    frequencies = encoding.inverse_frequencies(shapes.head_dim)
    rotation: tuple = tuple(np.round(frequencies, 15)), encoding.scaling
    if isinstance(encoding, rotary.DynamicNtkRope):
        rotation = *rotation, encoding  # at other lengths it has others
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
    first = config.layer_specs[0]
    fields: dict[str, Any] = {}
    for spec in config.layer_specs:
        if isinstance(spec.rotary, rotary.DynamicNtkRope):  # it takes its trained length from there
            fields["max_position_embeddings"] = whole(spec.rotary.context)
    if kind not in ("gemma3_text", "gemma4_text"):
        return fields | {"rope_parameters": parameters_of(first.rotary, config.head_dim)}
    local_specs, global_specs = _by_window(config)
    by_type = {SLIDING: local_specs or global_specs, FULL: global_specs or local_specs}
    return fields | {
        "rope_parameters": {
            layer_type: parameters_of(specs[0].rotary, config.of_layer(specs[0]).head_dim)
            for layer_type, specs in by_type.items()
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
