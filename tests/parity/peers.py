"""Tiny random models of Transformers, and what happens inside them."""

import math

import numpy as np
import torch
import transformers
from transformers import AttentionInterface

from rope_study.checkpoints.hugging_face.rope import FULL, SLIDING

SHAPES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
TWO_BASES = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}

# name -> (configuration, class): kv heads one, some and all; layers that leave a remainder of the
# pattern; windows shorter than the text.
CASES = {
    "gemma_mqa": ("Gemma", {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma_mha": ("Gemma", {"num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 10}),
    "gemma2": (
        "Gemma2",
        {"num_hidden_layers": 5, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3Text",
        {"num_hidden_layers": 8, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"query_pre_attn_scalar": 12, "rope_parameters": TWO_BASES},
    ),
    "gemma4": (
        "Gemma4Text",
        {"num_hidden_layers": 8, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"global_head_dim": 32, "hidden_size_per_layer_input": 0},
    ),
    "gemma4_keys_as_values": (
        "Gemma4Text",
        {"num_hidden_layers": 7, "num_key_value_heads": 4, "head_dim": 16, "sliding_window": 8}
        | {"global_head_dim": 32, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True}
        | {"num_global_key_value_heads": 2},
    ),
    "gemma4_shared_keys": (
        "Gemma4Text",
        {"num_hidden_layers": 12, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
        | {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True}
        | {"vocab_size_per_layer_input": 128, "num_kv_shared_layers": 5}
        | {"final_logit_softcapping": 4.0},
    ),
    "llama": (
        "Llama",
        {"num_hidden_layers": 3, "num_key_value_heads": 2, "rope_parameters": LLAMA3},
    ),
    "llama_tied": (
        "Llama",
        {"num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 6}
        | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    "mistral": (
        "Mistral",
        {"num_hidden_layers": 3, "num_key_value_heads": 2, "sliding_window": 8, "head_dim": 16},
    ),
    "mistral_full": (
        "Mistral",
        {"num_hidden_layers": 2, "num_key_value_heads": 1, "sliding_window": None},
    ),
    "qwen3": (
        "Qwen3",
        {"num_hidden_layers": 5, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"use_sliding_window": True, "max_window_layers": 3, "tie_word_embeddings": True},
    ),
    "smollm3": (
        "SmolLM3",
        {"num_hidden_layers": 9, "num_key_value_heads": 2, "pad_token_id": 0}
        | {"no_rope_layers": [1, 1, 0, 1, 1, 0, 1, 1, 0]},
    ),
}


def make(case, seed=0):
    """A model of that case, see build."""
    return build(*CASES[case], seed)


def build(name, fields, seed=0):
    """A model of that class in f32, whose norms, scalars and biases are not at their start."""
    config = getattr(transformers, f"{name}Config")(**SHAPES, **fields)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(2 if name == "Gemma4Text" else 4)
            # Gemma 4 does not divide logits by sqrt(H): with norms about 1 its attention would be
            # so sharp that f32 itself is off by 1e-3 (measured against float64).
            if name == "Gemma4Text" and key.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.mul_(0.4)
        for key, buffer in model.named_buffers():
            if "layer_scalar" in key:
                buffer.mul_(0.7)
    return model


def run(model, tokens):
    """Logits f32[B, T, V] and golden activations by name, as checkpoints.compare takes them."""
    activations = {}

    def attention(module, query, key, value, mask, scaling, dropout=0.0, softcap=None, **_):
        """Eager attention [B, N, T, H], that also keeps what it was given."""
        groups = query.shape[1] // key.shape[1]
        logits = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        weights = torch.softmax(logits + mask[:, :, :, : key.shape[2]], dim=-1)
        mixed = (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2)
        # Here queries carry the scale of the logits beyond 1 / sqrt(H).
        scale = scaling * math.sqrt(query.shape[-1])
        for name, x in (("q_rotated", query * scale), ("k_rotated", key), ("v", value)):
            activations[f"layer_{module.layer_idx}/{name}"] = x.transpose(1, 2)
        activations[f"layer_{module.layer_idx}/attention_output"] = mixed
        return mixed.contiguous(), weights

    AttentionInterface.register("caught", attention)
    transformers.masking_utils.AttentionMaskInterface.register(
        "caught", transformers.masking_utils.eager_mask
    )
    model.set_attn_implementation("caught")
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda _, __, out, i=i: activations.__setitem__(
                f"layer_{i}/residual", out[0] if isinstance(out, tuple) else out
            )
        )
    with torch.no_grad():
        activations["logits"] = model(torch.tensor(tokens), use_cache=False).logits
    golden = {name: value.float().numpy() for name, value in activations.items()}
    return golden["logits"], golden | {"tokens": np.asarray(tokens)}
