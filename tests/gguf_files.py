"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

import gguf
import numpy as np

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "gemma": "gemma", "gemma2": "gemma2", "phi3": "phi3",
    "gemma3_text": "gemma3", "qwen3": "qwen3", "smollm3": "smollm3",
}  # fmt: skip
PERMUTED = ("llama", "smollm3")


def convert(path, fields, tensors, quantisation="F32", metadata=None, tokenizer=None, changes=None):
    """Writes a model of Transformers.

    Args:
      path: of the file.
      fields: of config.json.
      tensors: {name as in Transformers: f32 array}.
      quantisation: of matrices whose rows divide into blocks; the rest is f32.
      metadata: {key without the architecture: value}, instead of what fields say; None leaves out.
      tokenizer: {key of tokenizer.ggml: value}.
      changes: what is done to {name in the file: array} before it is written.
    """
    architecture = ARCHITECTURES[fields["model_type"]]
    stored = stored_tensors(architecture, fields, tensors)
    stored = stored if changes is None else changes(stored)
    write(
        path, architecture, describe(architecture, fields) | (metadata or {}), stored, quantisation,
        tokenizer or {"model": "none", "bos_token_id": 2, "padding_token_id": 0},
    )  # fmt: skip


def describe(architecture, fields):
    """The metadata of a model, without the architecture in front of the keys."""
    heads = fields["num_attention_heads"]
    head_dim = fields.get("head_dim") or fields["hidden_size"] // heads
    rope = fields.get("rope_parameters") or {}
    metadata = {
        "vocab_size": fields["vocab_size"],
        "context_length": fields["max_position_embeddings"],
        "embedding_length": fields["hidden_size"],
        "block_count": fields["num_hidden_layers"],
        "feed_forward_length": fields["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": fields["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": rope.get("full_attention", rope).get("rope_theta", 1e4),
    }
    if architecture in ("gemma2", "gemma3"):
        metadata["attention.sliding_window"] = fields["sliding_window"]
    if architecture == "gemma2":
        metadata["attn_logit_softcapping"] = fields["attn_logit_softcapping"]
        metadata["final_logit_softcapping"] = fields["final_logit_softcapping"]
    return metadata


def stored_tensors(architecture, fields, tensors):
    """Names, norms and the order of rows as llama.cpp has them."""
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, fields["num_hidden_layers"])
    stored = {}
    for name, array in tensors.items():
        if name == "lm_head.weight" and fields["tie_word_embeddings"]:
            continue
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        for projection, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            if architecture in PERMUTED and name.endswith(f"{projection}_proj.weight"):
                array = permute(array, fields[heads])
        stored[names.get_name(name, (".weight",))] = array.astype(np.float32)
    return stored


def permute(rows, heads):
    """LlamaModel.permute of convert_hf_to_gguf.py: pairs become neighbours."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write(path, architecture, metadata, tensors, quantisation="F32", tokenizer=None):
    """Writes a file from {key without the architecture: value} and {name: f32 array}."""
    writer = gguf.GGUFWriter(path, architecture)
    kind = gguf.GGMLQuantizationType[quantisation]
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 0 else 'MOSTLY'}_{quantisation}"])
    for key, value in metadata.items():
        add(writer, f"{architecture}.{key}", value)
    for key, value in (tokenizer or {}).items():
        add(writer, f"tokenizer.ggml.{key}", value)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    for name, array in tensors.items():
        if array.ndim > 1 and array.shape[-1] % block == 0:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, key, value):
    """A value of whatever type it is; None is left out."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
