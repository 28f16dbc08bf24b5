"""The model families of Transformers that the decoder expresses, and their defaults.

Released files leave out what equals the defaults of Transformers' configuration classes, so those
are here; tests/parity compares them with the classes.
"""

import dataclasses
from typing import Any

from rope_study.decoder.norms import QKNorm
from rope_study.decoder.query_scaling import LogitScale


@dataclasses.dataclass(frozen=True)
class Family:
    """What a model_type means beyond the numbers in its file.

    Attributes:
      decoder: fields of DecoderConfig that all of its models have.
      defaults: of Transformers' configuration class, for keys that released files leave out.
      layer: fields of LayerSpec that all of its layers have.
      bos: whether every text has to begin with BOS.
      keys: of its files beyond those of all families and of `defaults` (fields.py).
    """

    decoder: dict[str, Any]
    defaults: dict[str, Any]
    layer: dict[str, Any] = dataclasses.field(default_factory=dict)
    bos: bool = False
    keys: tuple[str, ...] = ()


# For all layers at once; Gemma 3 and 4 have rope_parameters by type of layer.
_ROPE = ("rope_theta", "rope_scaling", "original_max_position_embeddings", "partial_rotary_factor")
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
        keys=("hidden_activation", *_ROPE),
    ),
    "gemma2": Family(
        decoder={"post_norms": True},
        defaults=_GEMMA
        | {"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216}
        | {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "sliding_window": 4096}
        | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        bos=True,
        keys=("hidden_activation", "sliding_window_size", *_ROPE),
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
        keys=(
            "hidden_activation",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "rope_theta",
            "rope_local_base_freq",
            "rope_scaling",
            "sliding_window_pattern",
        ),
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
        keys=(
            "hidden_activation",
            "final_logit_softcapping",
            "num_global_key_value_heads",
            "per_layer_config",
        ),
    ),
    "llama": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048},
        keys=_ROPE,
    ),
    "mistral": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"max_position_embeddings": 131_072, "sliding_window": 4096},
        keys=_ROPE,
    ),
    "qwen3": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
        | {"head_dim": 128, "max_position_embeddings": 32_768, "sliding_window": 4096}
        | {"use_sliding_window": False, "max_window_layers": 28},
        layer={"qk_norm": QKNorm()},
        keys=_ROPE,
    ),
    "smollm3": Family(
        decoder=_NOT_GEMMA,
        defaults=_LLAMA
        | {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008}
        | {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4}
        | {"max_position_embeddings": 32_768, "tie_word_embeddings": True}
        | {"no_rope_layer_interval": 4, "use_sliding_window": False, "rope_theta": 2e6},
        keys=("no_rope_layers", "sliding_window", "max_window_layers", *_ROPE),
    ),
}

# Models with other modalities hold the text model's configuration under this key.
WRAPPERS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}

# Settings that would change the mathematics in ways that the decoder has no part for.
REFUSED = {
    "attention_bias": "biases in attention",
    "mlp_bias": "biases in the MLP",
    "enable_moe_block": "mixture of experts",
    "use_bidirectional_attention": "attention to later tokens",
    "quantization_config": "quantised weights: load the unquantised checkpoint",
    "quantization": "quantised weights of MLX: load the unquantised checkpoint",
    "rope_interleaved": "neighbouring dimensions as rotary pairs",
    "pruned_heads": "pruned heads",
}
