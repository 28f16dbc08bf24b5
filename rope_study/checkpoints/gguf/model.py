"""What a GGUF file means: its metadata as the fields of Hugging Face's config.json.

So that a family is described once (hugging_face/families.py). Keys and names of tensors are those
of llama.cpp: docs/gguf.md of ggml, and gguf.constants of the package.
"""

import dataclasses
import functools
import math
import os
import re
from typing import Any

import gguf
import numpy as np

from rope_study.checkpoints.gguf.tensors import DequantisedTensors, Rows
from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.checkpoints.weight_map import (
    OpenCheckpoint,
    TensorSpec,
    WeightMap,
    make_weight_map,
)
from rope_study.data.gguf_file import GGUFFile
from rope_study.decoder import DecoderConfig
from rope_study.errors import UserError
from rope_study.rotary import llama3_rope, rope


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What general.architecture means.

    Attributes:
      family: of hugging_face.families.
      layout: how the rows of q and k are ordered: llama.cpp turns neighbouring dimensions in some
        architectures, and moves the rows of q and k to fit.
      norm_offset: what is added to the weights of norms.
    """

    family: str
    layout: str = "half_split"
    norm_offset: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", layout="interleaved"),  # Mistral too
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", norm_offset=1.0),
    "phi3": Architecture("mistral"),
    "qwen3": Architecture("qwen3"),
    "smollm3": Architecture("smollm3", layout="interleaved"),
}
REFUSED_ARCHITECTURES = {"qwen2": "biases in attention"}

# Settings that would change the mathematics in ways that the decoder has no part for.
REFUSED = {
    "expert_count": "mixture of experts",
    "logit_scale": "scaled logits",
    "embedding_scale": "scaled embeddings",
    "residual_scale": "scaled residuals",
    "attention.clamp_kqv": "clamped activations",
    "attention.max_alibi_bias": "ALiBi",
}

# Keys behind the architecture's name that are read below, and such as change nothing.
UNDERSTOOD = frozenset(
    "embedding_length feed_forward_length block_count context_length vocab_size"
    " attention.head_count attention.head_count_kv attention.key_length attention.value_length"
    " attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count"
    " tensor_data_layout".split()
)
UNDERSTOOD_OF = {
    "llama": {"attention.sliding_window"},
    "phi3": {"attention.sliding_window"},
    "gemma2": {"attention.sliding_window", "attention.scale"}
    | {"attn_logit_softcapping", "final_logit_softcapping"},
}
UNDERSTOOD_OF["gemma3"] = UNDERSTOOD_OF["gemma2"] | {
    "attention.sliding_window_pattern", "rope.freq_base_swa"
}  # fmt: skip

# Axes: D d_model, N query heads, K key heads, H head_dim, F mlp_hidden, V vocabulary.
EMBEDDING, UNEMBEDDING, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
TOP = {
    "embedding": TensorSpec(EMBEDDING, "vd", ("v", "d")),
    "final_norm": TensorSpec("output_norm.weight", "d", ("d",)),
    "unembedding": TensorSpec(UNEMBEDDING, "vd", ("v", "d")),
}
LAYER = {
    "attention_norm": TensorSpec("blk.{i}.attn_norm.weight", "d", ("d",)),
    "q": TensorSpec("blk.{i}.attn_q.weight", "dnh", ("nh", "d")),
    "k": TensorSpec("blk.{i}.attn_k.weight", "dkh", ("kh", "d")),
    "v": TensorSpec("blk.{i}.attn_v.weight", "dkh", ("kh", "d")),
    "o": TensorSpec("blk.{i}.attn_output.weight", "nhd", ("d", "nh")),
    "q_norm": TensorSpec("blk.{i}.attn_q_norm.weight", "h", ("h",)),
    "k_norm": TensorSpec("blk.{i}.attn_k_norm.weight", "h", ("h",)),
    "post_attention_norm": TensorSpec("blk.{i}.post_attention_norm.weight", "d", ("d",)),
    "mlp_norm": TensorSpec("blk.{i}.ffn_norm.weight", "d", ("d",)),
    "gate": TensorSpec("blk.{i}.ffn_gate.weight", "df", ("f", "d")),
    "up": TensorSpec("blk.{i}.ffn_up.weight", "df", ("f", "d")),
    "down": TensorSpec("blk.{i}.ffn_down.weight", "fd", ("d", "f")),
    "post_mlp_norm": TensorSpec("blk.{i}.post_ffw_norm.weight", "d", ("d",)),
}


def open_checkpoint(path: str | os.PathLike) -> OpenCheckpoint:
    """The model in a GGUF file, or in a folder with one; tensors are not read.

    Raises:
      UserError: an architecture or a setting that is not supported, or a file that is damaged.
    """
    file = GGUFFile(path)
    name = file.required("general.architecture")
    architecture = _architecture(file, name)
    fields = config_fields(file, name, architecture)
    kind = fields["model_type"]
    config = decoder_config(kind, fields, str(file.file))
    config = dataclasses.replace(config, source=source(file))
    rows = _fused_rows(config) if name == "phi3" else {}
    reader = DequantisedTensors(file.file, file.tensors, rows, architecture.norm_offset)
    weight_map = functools.partial(_weight_map, layout=architecture.layout)
    ignored = re.compile(f"^{re.escape(ROPE_FACTORS)}$")  # they are in the encoding
    return OpenCheckpoint(file.file.name, config, weight_map, reader, ignored)


def source(file: GGUFFile) -> str:
    """ "SmolLM2-135M-Instruct, Q4_1": the file's name, and how most of it was quantised."""
    kinds: dict[str, int] = {}
    for tensor in file.tensors.values():
        kind = tensor.tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + int(tensor.n_elements)
    quantisation = max(kinds, key=lambda kind: kinds[kind], default="")
    number = file.value("general.file_type")
    if number in list(gguf.LlamaFileType):
        quantisation = re.sub("^(MOSTLY|ALL)_", "", gguf.LlamaFileType(number).name)
    stem = re.sub(rf"[-_.]{re.escape(quantisation)}$", "", file.file.stem, flags=re.IGNORECASE)
    return f"{stem}, {quantisation}"


def _architecture(file: GGUFFile, name: str) -> Architecture:
    if name in REFUSED_ARCHITECTURES:
        raise UserError(
            f"{file.file}: architecture {name!r} has {REFUSED_ARCHITECTURES[name]}, which are not"
            " supported"
        )
    if name not in ARCHITECTURES or file.value("general.type", "model") != "model":
        raise UserError(
            f"{file.file}: architecture {name!r} ({file.value('general.type', 'model')}) is not"
            f" supported. Supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _weight_map(config: DecoderConfig, layout: str) -> WeightMap:
    turned = {name: dataclasses.replace(LAYER[name], layout=layout) for name in ("q", "k")}
    return make_weight_map(config, TOP, LAYER | turned)


def _fused_rows(config: DecoderConfig) -> dict[str, Rows]:
    """Phi 3 has q, k and v in one tensor, and gate and up in another."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {}
    for i in range(config.layers):
        for fused, parts in (
            ("attn_qkv", {"attn_q": queries, "attn_k": keys, "attn_v": keys}),
            ("ffn_up", {"ffn_gate": config.mlp_hidden, "ffn_up": config.mlp_hidden}),
        ):
            start = 0
            for part, size in parts.items():
                stored = f"blk.{i}.{fused}.weight"
                rows[f"blk.{i}.{part}.weight"] = Rows(stored, start, start + size)
                start += size
    return rows


# --- metadata ---------------------------------------------------------------------------------


def config_fields(file: GGUFFile, name: str, architecture: Architecture) -> dict[str, Any]:
    """The fields that config.json of the same model would have.

    Raises:
      UserError: a setting that is missing, or that the decoder cannot express.
    """
    setting = functools.partial(_setting, file, name)
    for key, what in REFUSED.items():
        if setting(key, 0):
            raise UserError(f"{file.file}: {name}.{key}={setting(key)} is not supported ({what})")
    _refuse_unknown(file, name)
    if EMBEDDING not in file.tensors:
        raise UserError(f"{file.file}: tensor {EMBEDDING!r} is missing")
    heads, rows = setting("attention.head_count", ...), int(file.tensors[EMBEDDING].shape[-1])
    if not heads:
        raise UserError(f"{file.file}: {name}.attention.head_count=0 must be at least 1")
    if setting("vocab_size", rows) != rows:
        raise UserError(
            f"{file.file}: {name}.vocab_size={setting('vocab_size')}, and tensor {EMBEDDING!r} has"
            f" {rows} rows"
        )
    fields = {
        "model_type": architecture.family,
        "vocab_size": rows,
        "hidden_size": setting("embedding_length", ...),
        "intermediate_size": setting("feed_forward_length", ...),
        "num_hidden_layers": setting("block_count", ...),
        "num_attention_heads": heads,
        "num_key_value_heads": setting("attention.head_count_kv", heads),
        "max_position_embeddings": setting("context_length", ...),
        "rms_norm_eps": setting("attention.layer_norm_rms_epsilon", ...),
        "tie_word_embeddings": UNEMBEDDING not in file.tensors,
        "rope_theta": setting("rope.freq_base", 10_000.0),
    }
    bos = file.value("tokenizer.ggml.bos_token_id")
    if bos is not None:
        fields["bos_token_id"] = bos
    fields["head_dim"] = setting("attention.key_length", fields["hidden_size"] // heads)
    _check_dimensions(file, name, fields["head_dim"])
    if name.startswith("gemma"):
        fields |= _gemma_fields(file, name, fields)
    elif name == "smollm3":
        fields["no_rope_layer_interval"] = 4  # llama.cpp has it fixed
    elif architecture.family in ("llama", "mistral"):
        window = setting("attention.sliding_window", 0)
        if window or architecture.family == "mistral":
            fields |= {"model_type": "mistral", "sliding_window": window or None}
    return fields | {"rope_scaling": _rope_scaling(file, name, fields)}


def _refuse_unknown(file: GGUFFile, name: str) -> None:
    """Refuses settings that may change the mathematics and are not read here."""
    understood = UNDERSTOOD | UNDERSTOOD_OF.get(name, set())
    for key in file.keys:
        setting = key.removeprefix(f"{name}.")
        if setting == key or setting in understood or setting.startswith("rope.scaling."):
            continue
        value = file.value(key)
        if value != (setting == "attention.causal"):  # what is off changes nothing
            raise UserError(
                f"{file.file}: {key}={value!r:.60} is no setting of {name!r} that is understood"
            )


def _setting(file: GGUFFile, name: str, setting: str, default: Any = None) -> Any:
    """A number in the metadata of that architecture; `...` as default requires it."""
    key = f"{name}.{setting}"
    value = file.required(key) if default is ... else file.value(key, default)
    if isinstance(value, float):
        return float(str(np.float32(value)))  # 1e-6, not the float32 next to it
    if isinstance(value, (list, str)):
        raise UserError(f"{file.file}: {key} is {value!r:.60}, and one number is expected")
    return value


def _check_dimensions(file: GGUFFile, name: str, head_dim: int) -> None:
    """The decoder has one size of heads, and turns all of it."""
    for key in ("attention.value_length", "rope.dimension_count"):
        size = _setting(file, name, key, head_dim)
        if size != head_dim:
            raise UserError(
                f"{file.file}: {name}.{key}={size} is not supported with heads of {head_dim}"
            )


def _gemma_fields(file: GGUFFile, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Windows, caps and the scale of queries."""
    setting = functools.partial(_setting, file, name)
    if name == "gemma":
        return {}
    # The largest of both generations divide by the root of d_model / heads (llama.cpp too knows
    # them by their number of layers), the others by that of head_dim.
    largest = fields["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[name]
    width = fields["hidden_size"] // fields["num_attention_heads"]
    scale = setting("attention.scale")
    gemma_fields = {
        "sliding_window": setting("attention.sliding_window", ...),
        "query_pre_attn_scalar": width if largest else fields["head_dim"],
    }
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := setting(key)) is not None:  # llama.cpp too has the family's where none is said
            gemma_fields[key] = cap or None
    if scale:
        gemma_fields["query_pre_attn_scalar"] = math.copysign(scale**-2, scale)
    if name == "gemma3":
        gemma_fields["rope_local_base_freq"] = setting("rope.freq_base_swa", 10_000.0)
        pattern = file.value(f"{name}.attention.sliding_window_pattern", 6)
        if isinstance(pattern, list):
            types = {True: "sliding_attention", False: "full_attention"}
            gemma_fields["layer_types"] = [types[bool(local)] for local in pattern]
        else:
            gemma_fields["sliding_window_pattern"] = pattern
    return gemma_fields


def _rope_scaling(file: GGUFFile, name: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """Transformers' rope_scaling, or None for plain RoPE."""
    prefix = f"{name}.rope.scaling."
    given = {
        key.removeprefix(prefix): file.value(key) for key in file.keys if key.startswith(prefix)
    }
    given.pop("finetuned", None)
    kind = given.pop("type", "linear" if "factor" in given else "none")  # as in llama.cpp
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, fields, given.get("original_context_length", 8192))
    if kind == "none":
        return None
    names = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    names |= {"attn_factor": "attention_factor"}
    if kind not in ("linear", "yarn") or not {"factor"} <= given.keys() <= names.keys():
        raise UserError(f"{file.file}: {prefix}type={kind!r} with {given} is not supported")
    return {"rope_type": kind} | {names[key]: value for key, value in given.items()}


def _llama3_scaling(file: GGUFFile, fields: dict[str, Any], context: int) -> dict[str, Any]:
    """Llama 3's, of which GGUF has only what each frequency is divided by: the vector must agree.

    The slowest pairs are divided by the factor itself; low_freq_factor and high_freq_factor are 1
    and 4 in all that were released.
    """
    tensor = file.tensors[ROPE_FACTORS]
    factors = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    factor = float(factors.max())
    theta, head_dim = fields["rope_theta"], fields["head_dim"]
    plain = rope(theta).inverse_frequencies(head_dim)
    scaled = llama3_rope(factor, context, theta).inverse_frequencies(head_dim)
    if factors.shape != plain.shape or not np.allclose(plain / factors, scaled, rtol=1e-5, atol=0):
        raise UserError(
            f"{file.file}: tensor {ROPE_FACTORS!r} divides the frequencies by other numbers than"
            f" Llama 3 with factor {factor:g} and context {context}; it is not supported"
        )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }  # fmt: skip
