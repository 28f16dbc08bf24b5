"""config.json of a Hugging Face folder as the decoder's configuration.

Everything is read from the file, and what it leaves out from its family's defaults.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rope_study.checkpoints.hugging_face.families import FAMILIES, REFUSED, WRAPPERS
from rope_study.checkpoints.hugging_face.rope import (
    FULL,
    SLIDING,
    Fields,
    encoding,
    rope_parameters,
)
from rope_study.decoder import DecoderConfig, LayerSpec
from rope_study.decoder.attention_scores import SoftCap
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError, nearest
from rope_study.rotary import nope


def read_fields(folder: Path) -> tuple[str, dict[str, Any], bool]:
    """(model_type, its fields, whether it is a part of a multimodal model), by config.json.

    Raises:
      UserError: no such file, not JSON, or a model_type that is not among FAMILIES.
    """
    file = folder / "config.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: give a folder with config.json") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not readable JSON ({error})") from None
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    wrapped = kind in WRAPPERS
    if wrapped:
        outer, fields = fields, fields.get("text_config")
        if not isinstance(fields, dict):
            raise UserError(f"{file}: model_type {kind!r} without a text_config")
        kind = WRAPPERS[kind]
        fields = {**{k: outer[k] for k in ("quantization_config",) if k in outer}, **fields}
    if kind not in FAMILIES:
        known = [*FAMILIES, *WRAPPERS]
        raise UserError(
            f"{file}: model_type {kind!r} is not supported.{nearest(str(kind), known)}"
            f" Supported: {', '.join(known)}"
        )
    return kind, fields, wrapped


def decoder_config(kind: str, fields: Fields, file: str = "config.json") -> DecoderConfig:
    """The decoder that a family's fields describe.

    Args:
      kind: of FAMILIES.
      fields: of config.json, or its text_config.
      file: names it in errors.

    Raises:
      UserError: a setting that the decoder cannot express, or an unknown rope type.
    """
    family = FAMILIES[kind]
    f = family.defaults | {key: value for key, value in fields.items() if value is not None}
    # A window of null is a setting: all layers read everything.
    if "sliding_window" in fields and fields["sliding_window"] is None:
        f["sliding_window"] = None
    for key, what in REFUSED.items():
        if f.get(key):
            raise UserError(f"{file}: {key}={f[key]!r} is not supported ({what})")
    _check_activation(kind, f, file)
    try:
        heads = f["num_attention_heads"]
        specs = _layers(kind, f, file)
        per_layer_dim = f.get("hidden_size_per_layer_input", 0)
        return DecoderConfig(
            vocab_size=f["vocab_size"],
            d_model=f["hidden_size"],
            layers=f["num_hidden_layers"],
            heads=heads,
            kv_heads=f.get("num_key_value_heads", heads),
            head_dim=_head_dim(f),
            mlp_hidden=f["intermediate_size"],
            pattern=shortest_pattern(specs),
            norm_epsilon=f["rms_norm_eps"],
            tied=f["tie_word_embeddings"],
            final_cap=f.get("final_logit_softcapping"),
            per_layer_dim=per_layer_dim,
            per_layer_vocab_size=f["vocab_size_per_layer_input"] if per_layer_dim else 0,
            trained_length=f["max_position_embeddings"],
            bos=f["bos_token_id"] if family.bos else None,
            **family.decoder,
        )
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: a setting is missing or of the wrong type ({error})") from error


def _head_dim(f: Fields) -> int:
    return f.get("head_dim") or f["hidden_size"] // f["num_attention_heads"]


def _check_activation(kind: str, f: Fields, file: str) -> None:
    """Gemma's files say "gelu" and mean the tanh form."""
    name = f.get("hidden_activation", f.get("hidden_act"))
    gemma = kind.startswith("gemma")
    allowed = ("gelu_pytorch_tanh", "gelu") if gemma else ("silu", "swish")
    if name is not None and name not in allowed:
        raise UserError(f"{file}: activation {name!r} is not {' or '.join(allowed)} of {kind}")


# --- layers -----------------------------------------------------------------------------------


def _layers(kind: str, f: Fields, file: str) -> list[LayerSpec]:
    """One spec a layer."""
    types = layer_types(kind, f)
    if len(types) != f["num_hidden_layers"] or not set(types) <= {SLIDING, FULL}:
        raise UserError(
            f"{file}: layer_types={types} must be {f['num_hidden_layers']} of {SLIDING}, {FULL}"
        )
    longest = f["max_position_embeddings"]
    encodings = {t: encoding(rope_parameters(f, t), longest, file) for t in set(types)}
    common = dict(FAMILIES[kind].layer)
    scalar = f.get("query_pre_attn_scalar")
    if scalar is not None and scalar != _head_dim(f):
        common["query_scale"] = LogitScale(scalar**-0.5)
    if f.get("attn_logit_softcapping"):
        common["score_function"] = SoftCap(f["attn_logit_softcapping"])
    specs = [
        LayerSpec(encodings[t], f["sliding_window"] if t == SLIDING else None, **common)
        for t in types
    ]
    if kind == "smollm3":
        return _smollm3_layers(specs, f, file)
    return _gemma4_layers(specs, types, f) if kind == "gemma4_text" else specs


def layer_types(kind: str, f: Fields) -> list[str]:
    """Which layers are local, by the file or by the family's rule."""
    layers, window = range(f["num_hidden_layers"]), f.get("sliding_window")
    if kind == "mistral":
        return [FULL if window is None else SLIDING for _ in layers]
    if f.get("layer_types"):
        types = list(f["layer_types"])
    elif kind == "gemma2":
        types = [FULL if (i + 1) % 2 == 0 else SLIDING for i in layers]
    elif kind in ("gemma3_text", "gemma4_text"):
        period = f.get("sliding_window_pattern", 6)
        types = [FULL if (i + 1) % period == 0 else SLIDING for i in layers]
    elif kind == "qwen3" and f["use_sliding_window"] and window is not None:
        types = [SLIDING if i >= f["max_window_layers"] else FULL for i in layers]
    else:
        types = [FULL for _ in layers]
    if kind == "gemma4_text":
        types[-1] = FULL  # Transformers forces it
    return types


def _smollm3_layers(specs: list[LayerSpec], f: Fields, file: str) -> list[LayerSpec]:
    """NoPE where no_rope_layers has a 0, or in every fourth layer."""
    if f["use_sliding_window"]:
        raise UserError(f"{file}: use_sliding_window is not supported for smollm3")
    interval = f["no_rope_layer_interval"]
    turned = f.get("no_rope_layers") or [(i + 1) % interval for i in range(len(specs))]
    return [
        spec if turns else dataclasses.replace(spec, rotary=nope())
        for spec, turns in zip(specs, turned, strict=True)
    ]


def _gemma4_layers(specs: list[LayerSpec], types: list[str], f: Fields) -> list[LayerSpec]:
    """Wider heads, keys as values and shared keys, where Gemma 4 has them."""
    with_keys = len(specs) - f["num_kv_shared_layers"]  # the layers after these read earlier keys
    changed = []
    for i, (spec, layer_type) in enumerate(zip(specs, types, strict=True)):
        changes: dict[str, Any] = _gemma4_shapes(i, layer_type, f)
        changes["keys_as_values"] = f["attention_k_eq_v"] and layer_type == FULL
        if i >= with_keys:
            changes["keys_from"] = with_keys - 1 - types[:with_keys][::-1].index(layer_type)
            changes["keys_as_values"] = False
            if f["use_double_wide_mlp"]:
                changes["mlp_hidden"] = 2 * f["intermediate_size"]
        changed.append(dataclasses.replace(spec, **changes))
    return changed


def _gemma4_shapes(i: int, layer_type: str, f: Fields) -> dict[str, Any]:
    """head_dim and kv_heads of a layer; files saved by Transformers list them by layer."""
    by_layer = f.get("per_layer_config")
    if by_layer is not None:
        of_layer = {int(key): value for key, value in by_layer.items()}.get(i, {})
        shapes = of_layer.get("head_dim"), of_layer.get("num_key_value_heads")
    elif layer_type == FULL:
        kv_heads = f.get("num_global_key_value_heads") if f["attention_k_eq_v"] else None
        shapes = f["global_head_dim"], kv_heads
    else:
        shapes = None, None
    named = zip(("head_dim", "kv_heads"), shapes, strict=True)
    defaults = {"head_dim": _head_dim(f), "kv_heads": f["num_key_value_heads"]}
    return {name: size for name, size in named if size not in (None, defaults[name])}


def shortest_pattern(specs: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """The shortest beginning of the layers that, repeated, gives them all."""
    period = len(specs)
    if all(spec.keys_from is None for spec in specs):  # sharing keys reaches across repeats
        period = next(
            p
            for p in range(1, len(specs) + 1)
            if all(spec == specs[i % p] for i, spec in enumerate(specs))
        )
    return tuple(specs[:period])
