"""config.json of a Hugging Face folder to the decoder's configuration, for the families we know.

Everything is read from the file. Released files leave out what equals the defaults of
Transformers' configuration classes, so those are here too; a test compares them with the classes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rope_study import rotary
from rope_study.decoder import DecoderConfig, LayerSpec
from rope_study.decoder.attention_scores import SoftCap
from rope_study.decoder.norms import QKNorm
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError, nearest

Fields = Mapping[str, Any]
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Family:
    """What a model_type means beyond the numbers in its file.

    Attributes:
      decoder: fields of DecoderConfig that all of its models have.
      defaults: of Transformers' configuration class, for keys that released files leave out.
      layer: fields of LayerSpec that all of its layers have.
      bos: whether every text has to begin with BOS.
    """

    decoder: dict[str, Any]
    defaults: dict[str, Any]
    layer: dict[str, Any] = dataclasses.field(default_factory=dict)
    bos: bool = False


_GEMMA = {
    "head_dim": 256, "rms_norm_eps": 1e-6, "bos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
_LLAMA = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_NOT_GEMMA = {"norm_offset": 0.0, "activation": "silu", "scale_embedding": False}

FAMILIES = {
    "gemma": Family(
        decoder={},
        defaults=_GEMMA
        | {"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576}
        | {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16}
        | {"max_position_embeddings": 8192},
        bos=True,
    ),
    "gemma2": Family(
        decoder={"post_norms": True},
        defaults=_GEMMA
        | {"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216}
        | {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "sliding_window": 4096}
        | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        bos=True,
    ),
    "gemma3_text": Family(
        decoder={"post_norms": True},
        defaults=_GEMMA
        | {"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216}
        | {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"max_position_embeddings": 131_072, "query_pre_attn_scalar": 256}
        | {"sliding_window": 4096},
        layer={"qk_norm": QKNorm()},
        bos=True,
    ),
    "gemma4_text": Family(
        decoder={"post_norms": True, "norm_offset": 0.0, "layer_scalar": True},
        defaults=_GEMMA
        | {"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216}
        | {"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"max_position_embeddings": 131_072, "sliding_window": 512, "global_head_dim": 512}
        | {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144}
        | {"attention_k_eq_v": False, "num_kv_shared_layers": 0, "use_double_wide_mlp": False},
        layer={"qk_norm": QKNorm(), "query_scale": LogitScale(1.0), "value_norm": True},
        bos=True,
    ),
    "llama": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048},
    ),
    "mistral": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"max_position_embeddings": 131_072, "sliding_window": 4096},
    ),
    "qwen3": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
        | {"head_dim": 128, "max_position_embeddings": 32_768, "sliding_window": 4096}
        | {"use_sliding_window": False, "max_window_layers": 28},
        layer={"qk_norm": QKNorm()},
    ),
}

# Models with other senses hold the text model's configuration under this key.
WRAPPERS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}

# Settings that would change the mathematics in ways that the decoder has no part for.
REFUSED = {
    "attention_bias": "biases in attention",
    "mlp_bias": "biases in the MLP",
    "enable_moe_block": "mixture of experts",
    "use_bidirectional_attention": "attention to later tokens",
    "quantization_config": "quantised weights: load the unquantised checkpoint",
}


def read_fields(folder: Path) -> tuple[str, dict[str, Any], bool]:
    """(model_type, its fields, whether other senses were around it) of a folder's config.json.

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
            per_layer_dim=f.get("hidden_size_per_layer_input", 0),
            per_layer_vocab_size=f["vocab_size_per_layer_input"]
            if f.get("hidden_size_per_layer_input")
            else 0,
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
    kinds = layer_types(kind, f)
    if len(kinds) != f["num_hidden_layers"] or not set(kinds) <= {SLIDING, FULL}:
        raise UserError(
            f"{file}: layer_types={kinds} must be {f['num_hidden_layers']} of {SLIDING}, {FULL}"
        )
    encodings = {t: encoding(rope_parameters(f, t), f, file) for t in set(kinds)}
    common = dict(FAMILIES[kind].layer)
    scalar = f.get("query_pre_attn_scalar")
    if scalar is not None and scalar != _head_dim(f):
        common["query_scale"] = LogitScale(scalar**-0.5)
    if f.get("attn_logit_softcapping"):
        common["score_function"] = SoftCap(f["attn_logit_softcapping"])
    specs = [
        LayerSpec(encodings[t], f["sliding_window"] if t == SLIDING else None, **common)
        for t in kinds
    ]
    return _gemma4_layers(specs, kinds, f) if kind == "gemma4_text" else specs


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


def _gemma4_layers(specs: list[LayerSpec], kinds: list[str], f: Fields) -> list[LayerSpec]:
    """Wider heads, keys as values and shared keys, where Gemma 4 has them."""
    own = len(specs) - f["num_kv_shared_layers"]
    found = []
    for i, (spec, kind) in enumerate(zip(specs, kinds, strict=True)):
        changes: dict[str, Any] = _gemma4_shapes(i, kind, f)
        changes["keys_as_values"] = f["attention_k_eq_v"] and kind == FULL
        if i >= own:
            changes["keys_from"] = own - 1 - kinds[:own][::-1].index(kind)
            changes["keys_as_values"] = False
            if f["use_double_wide_mlp"]:
                changes["mlp_hidden"] = 2 * f["intermediate_size"]
        found.append(dataclasses.replace(spec, **changes))
    return found


def _gemma4_shapes(i: int, kind: str, f: Fields) -> dict[str, int]:
    """head_dim and kv_heads of a layer; files saved by Transformers list them by layer."""
    by_layer = f.get("per_layer_config")
    if by_layer is not None:
        of_layer = {int(key): value for key, value in by_layer.items()}.get(i, {})
        shapes = of_layer.get("head_dim"), of_layer.get("num_key_value_heads")
    elif kind == FULL:
        kv_heads = f.get("num_global_key_value_heads") if f["attention_k_eq_v"] else None
        shapes = f["global_head_dim"], kv_heads
    else:
        shapes = None, None
    named = zip(("head_dim", "kv_heads"), shapes, strict=True)
    defaults = {"head_dim": _head_dim(f), "kv_heads": f["num_key_value_heads"]}
    return {name: size for name, size in named if size not in (None, defaults[name])}


def shortest_pattern(specs: list[LayerSpec]) -> tuple[LayerSpec, ...]:
    """The shortest beginning of the layers that, repeated, gives them all."""
    period = len(specs)
    if all(spec.keys_from is None for spec in specs):  # sharing keys reaches across repeats
        period = next(
            p
            for p in range(1, len(specs) + 1)
            if all(spec == specs[i % p] for i, spec in enumerate(specs))
        )
    return tuple(specs[:period])


# --- rope -------------------------------------------------------------------------------------


def rope_parameters(f: Fields, layer_type: str) -> dict[str, Any]:
    """The rope settings of one type of layer, from files of today and of before.

    Today's have rope_parameters, for all layers or by type; before there were rope_theta,
    rope_scaling and, in Gemma 3, rope_local_base_freq.
    """
    found = f.get("rope_parameters")
    if found is not None and {SLIDING, FULL} & found.keys():
        found = found.get(layer_type)
    gemma3 = "rope_local_base_freq" in f or f.get("model_type") in ("gemma3_text", "gemma4_text")
    local = gemma3 and layer_type == SLIDING
    if found is None:
        scaling = f.get("rope_scaling")
        found = {} if scaling is None or local else dict(scaling)
        if f.get("model_type") == "gemma4_text" and not local:
            found = {"rope_type": "proportional", "partial_rotary_factor": 0.25} | found
    if gemma3:
        theta = f.get("rope_local_base_freq", 1e4) if local else f.get("rope_theta", 1e6)
    else:
        theta = f.get("rope_theta", 1e4)
    kind = found.get("rope_type", found.get("type", "default"))
    return {"rope_theta": theta} | found | {"rope_type": kind}


def encoding(parameters: Fields, f: Fields, file: str) -> rotary.Encoding:
    """The encoding of Transformers' rope parameters.

    "dynamic" and "longrope" depend on the length that is run: here it is the trained one.

    Raises:
      UserError: an unknown rope type, or one that lacks a parameter.
    """
    kind = parameters["rope_type"]
    if kind not in ROPE_TYPES:
        raise UserError(
            f"{file}: rope type {kind!r} is not supported.{nearest(str(kind), ROPE_TYPES)}"
            f" Supported: {', '.join(ROPE_TYPES)}"
        )
    try:
        return ROPE_TYPES[kind](parameters, parameters["rope_theta"], f)
    except KeyError as error:
        raise UserError(f"{file}: rope type {kind!r} lacks the parameter {error}") from None


def _trained(p: Fields, f: Fields) -> int:
    return p.get("original_max_position_embeddings", f["max_position_embeddings"])


def _proportional(p: Fields, theta: float, f: Fields) -> rotary.Encoding:
    share, factor = p.get("partial_rotary_factor", 1.0), p.get("factor", 1.0)
    return rotary.p_rope(share, theta, factor)


def _yarn(p: Fields, theta: float, f: Fields) -> rotary.Encoding:
    given = ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor")
    optional = {name: p[name] for name in given if p.get(name) is not None}
    context = _trained(p, f)
    factor = p.get("factor") or f["max_position_embeddings"] / context
    share = p.get("partial_rotary_factor", 1.0)
    return rotary.yarn_rope(factor, context, theta, partial=share, **optional)


def _longrope(p: Fields, theta: float, f: Fields) -> rotary.Encoding:
    context = _trained(p, f)
    factor = p.get("factor") or f["max_position_embeddings"] / context
    return rotary.longrope(
        tuple(p["short_factor"]), tuple(p["long_factor"]), context, context, factor, theta,
        attention_factor=p.get("attention_factor"), partial=p.get("partial_rotary_factor", 1.0),
    )  # fmt: skip


def _llama3(p: Fields, theta: float, f: Fields) -> rotary.Encoding:
    return rotary.llama3_rope(
        p["factor"], p["original_max_position_embeddings"], theta, p["low_freq_factor"],
        p["high_freq_factor"],
    )  # fmt: skip


ROPE_TYPES: dict[str, Callable[[Fields, float, Fields], rotary.Encoding]] = {
    "default": lambda p, theta, f: rotary.rope(theta),
    "linear": lambda p, theta, f: rotary.linear_rope(
        p["factor"], theta, p.get("partial_rotary_factor", 1.0)
    ),
    "dynamic": lambda p, theta, f: rotary.dynamic_ntk_rope(
        p["factor"], _trained(p, f), _trained(p, f), theta, p.get("partial_rotary_factor", 1.0)
    ),
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
