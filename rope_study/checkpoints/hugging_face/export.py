"""The decoder's configuration as config.json, for the families that can express it.

A family is right if its file, read back, describes the same decoder; what no family gives back is
refused.
"""

import dataclasses
from typing import Any

import numpy as np

from rope_study import rotary
from rope_study.checkpoints.hugging_face.config import FAMILIES, FULL, SLIDING, decoder_config
from rope_study.decoder import DecoderConfig, LayerSpec
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError
from rope_study.rotary import name_of

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


def config_fields(config: DecoderConfig) -> dict[str, Any]:
    """What config.json holds.

    Raises:
      UserError: no family expresses this decoder.
    """
    for kind in CLASSES:
        try:
            fields = _fields(kind, config)
            found = decoder_config(kind, fields)
        except UserError:
            continue
        if _comparable(found) == _comparable(config):
            return {"model_type": kind, "architectures": [CLASSES[kind]]} | fields
    layers = "; ".join(dict.fromkeys(map(str, config.pattern)))
    raise UserError(
        f"no model of Transformers expresses this decoder, so it cannot be exported: tried"
        f" {', '.join(CLASSES)} for layers {layers} with norm_offset={config.norm_offset},"
        f" activation={config.activation!r}, post_norms={config.post_norms}"
    )


def _comparable(config: DecoderConfig) -> tuple:
    """What must agree: all mathematics; encodings by their frequencies, queries by their scale."""
    fixed = dataclasses.replace(
        config, pattern=(LayerSpec(),), compute_dtype="float32", attention="reference",
        remat="none", scan=True, bos=None,
    )  # fmt: skip
    layers = []
    for spec in config.layer_specs:
        shapes = config.of_layer(spec)
        encoding = spec.rotary
        if not isinstance(encoding, rotary.Encoding) or not encoding.relative or encoding.trained:
            raise UserError(f"{name_of(encoding)} is not one vector of frequencies")
        frequencies = encoding.inverse_frequencies(shapes.head_dim)
        turns = tuple(np.round(frequencies, 15)), encoding.scaling
        plain = dataclasses.replace(
            spec, rotary=rotary.nope(), query_scale=None, keys_from=None, head_dim=None,
            kv_heads=None, mlp_hidden=None,
        )  # fmt: skip
        scale = spec.query_scale or LogitScale(shapes.head_dim**-0.5)
        sizes = shapes.head_dim, shapes.kv_heads, shapes.mlp_hidden
        layers.append((plain, turns, scale, sizes, spec.keys_from))
    return fixed, tuple(layers)


def _fields(kind: str, config: DecoderConfig) -> dict[str, Any]:
    """The file of one family for this decoder, as far as the family goes."""
    specs = config.layer_specs
    local = [spec for spec in specs if spec.window is not None]
    far = [spec for spec in specs if spec.window is None]
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": LONGEST,
        "bos_token_id": config.bos,
        "hidden_activation" if kind in ("gemma2", "gemma3_text", "gemma4_text") else "hidden_act":
            "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
    }  # fmt: skip
    if "sliding_window" in FAMILIES[kind].defaults:
        fields["sliding_window"] = local[0].window if local else None
        if kind != "mistral":
            fields["layer_types"] = [FULL if s.window is None else SLIDING for s in specs]
            fields["sliding_window"] = local[0].window if local else 4096
        if kind == "qwen3":
            fields["use_sliding_window"] = bool(local)
    if kind.startswith("gemma") and kind != "gemma":
        fields["final_logit_softcapping"] = config.final_cap
    if kind in ("gemma2", "gemma3_text"):
        cap = getattr(specs[0].score_function, "cap", None)
        fields["attn_logit_softcapping"] = cap
        scale = specs[0].query_scale
        factor = scale.factor if isinstance(scale, LogitScale) else config.head_dim**-0.5
        fields["query_pre_attn_scalar"] = _whole(factor**-2)
    if kind in ("gemma3_text", "gemma4_text"):
        by_type = {SLIDING: local or far, FULL: far or local}
        fields["rope_parameters"] = {
            name: _rope_parameters(of_type[0].rotary) for name, of_type in by_type.items()
        }
    else:
        fields["rope_parameters"] = _rope_parameters(specs[0].rotary)
    if kind == "gemma4_text":
        fields |= _gemma4(config, specs, far)
    return fields


def _gemma4(config: DecoderConfig, specs: tuple[LayerSpec, ...], far: list) -> dict[str, Any]:
    shapes = [config.of_layer(spec) for spec in specs]
    shared = sum(spec.keys_from is not None for spec in specs)
    return {
        "per_layer_config": {
            str(i): {"head_dim": s.head_dim, "num_key_value_heads": s.kv_heads}
            for i, s in enumerate(shapes)
            if (s.head_dim, s.kv_heads) != (config.head_dim, config.kv_heads)
        },
        "attention_k_eq_v": any(spec.keys_as_values for spec in far),
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": any(s.mlp_hidden != config.mlp_hidden for s in shapes),
        "hidden_size_per_layer_input": config.per_layer_dim,
        "vocab_size_per_layer_input": config.per_layer_vocab_size or config.vocab_size,
    }


def _whole(value: float) -> float | int:
    """An integer where it is one but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-6 * abs(value) else value


# --- rope -------------------------------------------------------------------------------------


def _rope_parameters(encoding: rotary.Rotary) -> dict[str, Any]:
    """Transformers' rope parameters of an encoding.

    Raises:
      UserError: Transformers has no such rope type.
    """
    match encoding:
        case rotary.Rope():
            parameters = {"rope_type": "default"}
        case rotary.Nope():
            parameters = {"rope_type": "proportional", "partial_rotary_factor": 0.0}
        case rotary.PRope():
            parameters = {"rope_type": "proportional", "partial_rotary_factor": encoding.p}
            parameters |= {"factor": encoding.factor} if encoding.factor else {}
        case rotary.LinearRope():
            parameters = {"rope_type": "linear", "factor": encoding.factor}
        case rotary.DynamicNtkRope():
            parameters = {"rope_type": "dynamic", "factor": encoding.factor}
        case rotary.YarnRope():
            names = ("factor", "beta_fast", "beta_slow", "truncate")
            names += ("mscale", "mscale_all_dim", "attention_factor")
            parameters = {"rope_type": "yarn"} | _given(encoding, names)
        case rotary.Llama3Rope():
            names = ("factor", "low_freq_factor", "high_freq_factor")
            parameters = {"rope_type": "llama3"} | _given(encoding, names)
        case _:
            raise UserError(f"{rotary.name_of(encoding)} is no rope type of Transformers")
    if hasattr(encoding, "context"):
        parameters["original_max_position_embeddings"] = _whole(encoding.context)
    if getattr(encoding, "partial", 1.0) != 1:
        parameters["partial_rotary_factor"] = encoding.partial
    return parameters | {"rope_theta": float(getattr(encoding, "theta", 10_000.0))}


def _given(encoding: rotary.Encoding, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of these names that are not left out."""
    return {n: v for n, v in encoding.arguments().items() if n in names and v is not None}
