"""Fields of config.json as the decoder's configuration; fields.py reads and checks them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rope_study.checkpoints.hugging_face.families import FAMILIES
from rope_study.checkpoints.hugging_face.fields import Fields, complete
from rope_study.checkpoints.hugging_face.rope import FULL, SLIDING, encoding, rope_parameters
from rope_study.decoder import DecoderConfig, LayerSpec
from rope_study.decoder.attention_scores import SoftCap
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError
from rope_study.rotary import nope

# What errors of DecoderConfig name, in the words of the file.
KEYS = {
    "heads": "num_attention_heads and num_key_value_heads",
    "head_dim": "head_dim, or hidden_size / num_attention_heads",
}


def decoder_config(kind: str, fields: Fields, file: str = "config.json") -> DecoderConfig:
    """The decoder that a family's fields describe.

    Args:
      kind: of FAMILIES.
      fields: of config.json, or its text_config.
      file: names it in errors.

    Raises:
      UserError: a setting of another type, that is not understood, or that the decoder cannot
        express.
    """
    family = FAMILIES[kind]
    f = complete(kind, fields, file)
    _check_activation(kind, f, file)
    specs = _layers(kind, f, file)
    per_layer_dim = f.get("hidden_size_per_layer_input", 0)
    try:
        return DecoderConfig(
            vocab_size=f["vocab_size"],
            d_model=f["hidden_size"],
            layers=f["num_hidden_layers"],
            heads=f["num_attention_heads"],
            kv_heads=_kv_heads(f),
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
    except UserError as error:
        keys = f" ({KEYS[error.argument]})" if error.argument in KEYS else ""
        raise UserError(f"{file}: {error}{keys}") from error


def _kv_heads(f: Fields) -> int:
    """As many as heads where there is none or null."""
    return f.get("num_key_value_heads") or f["num_attention_heads"]


def _head_dim(f: Fields) -> int:
    return f.get("head_dim") or f["hidden_size"] // f["num_attention_heads"]


def _check_activation(kind: str, f: Fields, file: str) -> None:
    """Gemma's files say "gelu" and mean the tanh form."""
    name = f.get("hidden_activation") or f.get("hidden_act")
    gemma = kind.startswith("gemma")
    allowed = ("gelu_pytorch_tanh", "gelu") if gemma else ("silu", "swish")
    if name is not None and name not in allowed:
        raise UserError(f"{file}: activation {name!r} is not {' or '.join(allowed)} of {kind}")


# --- layers -----------------------------------------------------------------------------------


def _layers(kind: str, f: Fields, file: str) -> list[LayerSpec]:
    """One spec a layer."""
    types = layer_types(kind, f, file)
    if kind == "gemma4_text":
        _check_gemma4(f, types, file)
    window = f.get("sliding_window")
    encodings = {
        t: encoding(
            rope_parameters(kind, f, t, file), _head_dim_of_type(kind, t, types, f), f, file
        )
        for t in set(types)
    }
    common = dict(FAMILIES[kind].layer)
    scalar = f.get("query_pre_attn_scalar")
    if scalar is not None and scalar != _head_dim(f):
        common["query_scale"] = LogitScale(scalar**-0.5)
    if f.get("attn_logit_softcapping"):
        common["score_function"] = SoftCap(f["attn_logit_softcapping"])
    specs = [LayerSpec(encodings[t], window if t == SLIDING else None, **common) for t in types]
    if kind == "smollm3":
        return _smollm3_layers(specs, f, file)
    return _gemma4_layers(specs, types, f) if kind == "gemma4_text" else specs


def layer_types(kind: str, f: Fields, file: str) -> list[str]:
    """Which layers are local, by the file or by the family's rule.

    Raises:
      UserError: not one type a layer, or local layers without a window to go with them.
    """
    layers, types = f["num_hidden_layers"], f.get("layer_types") or _rule(kind, f)
    named = all(isinstance(t, str) and t in (SLIDING, FULL) for t in types)
    if len(types) != layers or not named:
        raise UserError(f"{file}: layer_types={types!r:.60} must be {layers} of {SLIDING}, {FULL}")
    if kind == "gemma4_text":
        types = [*types[:-1], FULL]  # Transformers forces it
    if SLIDING in types and f.get("sliding_window") is None:
        raise UserError(
            f"{file}: some layers are {SLIDING!r}, and sliding_window is"
            f" {'null' if 'sliding_window' in f else 'missing'}: give it, or make all {FULL!r}"
        )
    if SLIDING in types and not f.get("use_sliding_window", True):
        raise UserError(f"{file}: layer_types has {SLIDING!r}, and use_sliding_window is false")
    return types


def _rule(kind: str, f: Fields) -> list[str]:
    """A family's rule for files without layer_types."""
    layers, window = range(f["num_hidden_layers"]), f.get("sliding_window")
    if kind == "mistral":
        return [FULL if window is None else SLIDING for _ in layers]
    if kind == "gemma2":
        return [FULL if (i + 1) % 2 == 0 else SLIDING for i in layers]
    if kind in ("gemma3_text", "gemma4_text"):
        period = f.get("sliding_window_pattern", 6)
        return [FULL if (i + 1) % period == 0 else SLIDING for i in layers]
    if kind == "qwen3" and f["use_sliding_window"] and window is not None:
        return [SLIDING if i >= f["max_window_layers"] else FULL for i in layers]
    return [FULL for _ in layers]


def _smollm3_layers(specs: list[LayerSpec], f: Fields, file: str) -> list[LayerSpec]:
    """NoPE where no_rope_layers has a 0, or in every fourth layer."""
    if f["use_sliding_window"]:
        raise UserError(f"{file}: use_sliding_window is not supported for smollm3")
    interval = f["no_rope_layer_interval"]
    turned = f.get("no_rope_layers")
    turned = [(i + 1) % interval for i in range(len(specs))] if turned is None else turned
    if len(turned) < len(specs) or not all(isinstance(turns, int) for turns in turned):
        raise UserError(
            f"{file}: no_rope_layers={turned!r:.60} must have a 0 or 1 for each of {len(specs)}"
            " layers"
        )
    return [
        spec if turns else dataclasses.replace(spec, rotary=nope())
        for spec, turns in zip(specs, turned, strict=False)
    ]


# --- Gemma 4 ----------------------------------------------------------------------------------


def _check_gemma4(f: Fields, types: list[str], file: str) -> None:
    """Refuses layers of other shapes than numbers, and shared keys that no layer makes."""
    by_layer = f.get("per_layer_config") or {}
    for key, layer in by_layer.items():
        sizes = layer.values() if isinstance(layer, dict) else [None]
        if not str(key).isdecimal() or not all(type(n) is int and n > 0 for n in sizes):
            raise UserError(
                f"{file}: per_layer_config has {key!r}: {layer!r:.60}, not the number of a layer"
                " with its head_dim and num_key_value_heads"
            )
        if unknown := layer.keys() - {"head_dim", "num_key_value_heads"}:
            raise UserError(f"{file}: {sorted(unknown)} in per_layer_config is not supported")
    shared = f["num_kv_shared_layers"]
    if shared and not set(types) <= set(types[: max(0, len(types) - shared)]):
        raise UserError(
            f"{file}: num_kv_shared_layers={shared} of {len(types)} leaves no layer of its own for"
            " every type of layer to take keys from"
        )


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
    defaults = {"head_dim": _head_dim(f), "kv_heads": _kv_heads(f)}
    return {name: size for name, size in named if size not in (None, defaults[name])}


def _head_dim_of_type(kind: str, layer_type: str, types: list[str], f: Fields) -> int:
    """Of the layers of that type."""
    if kind != "gemma4_text":
        return _head_dim(f)
    shapes = _gemma4_shapes(types.index(layer_type), layer_type, f)
    return shapes.get("head_dim", _head_dim(f))


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
