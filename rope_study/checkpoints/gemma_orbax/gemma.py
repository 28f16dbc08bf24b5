"""Official Gemma checkpoints for Flax (Kaggle's "flax" variations) of Gemma 1, 2 and 3.

docs/official_gemma.md has the trees and where each fact comes from. Axes: D d_model, N heads,
K kv_heads, H head_dim, F mlp_hidden, V vocabulary.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

from rope_study import rotary
from rope_study.checkpoints.gemma_orbax.tree import OrbaxTree
from rope_study.checkpoints.weight_map import (
    OpenCheckpoint,
    TensorSpec,
    make_weight_map,
)
from rope_study.decoder import DecoderConfig, LayerSpec
from rope_study.decoder.attention_scores import SoftCap
from rope_study.decoder.norms import QKNorm
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError

TOP = {
    "embedding": TensorSpec("embedder/input_embedding", "vd", ("v", "d")),
    "final_norm": TensorSpec("final_norm/scale", "d", ("d",)),
}
LAYER = {
    "attention_norm": TensorSpec("layer_{i}/pre_attention_norm/scale", "d", ("d",)),
    "o": TensorSpec("layer_{i}/attn/attn_vec_einsum/w", "nhd", ("n", "h", "d")),
    "mlp_norm": TensorSpec("layer_{i}/pre_ffw_norm/scale", "d", ("d",)),
    "down": TensorSpec("layer_{i}/mlp/linear/w", "fd", ("f", "d")),
    "post_attention_norm": TensorSpec("layer_{i}/post_attention_norm/scale", "d", ("d",)),
    "post_mlp_norm": TensorSpec("layer_{i}/post_ffw_norm/scale", "d", ("d",)),
    "q_norm": TensorSpec("layer_{i}/attn/_query_norm/scale", "h", ("h",)),
    "k_norm": TensorSpec("layer_{i}/attn/_key_norm/scale", "h", ("h",)),
}
_KV, _QKV = "layer_{i}/attn/kv_einsum/w", "layer_{i}/attn/qkv_einsum/w"
SPLIT_QKV = {
    "q": TensorSpec("layer_{i}/attn/q_einsum/w", "dnh", ("n", "d", "h")),
    "k": TensorSpec(_KV, "dkh", ("k", "d", "h"), part=(0,)),
    "v": TensorSpec(_KV, "dkh", ("k", "d", "h"), part=(1,)),
}
# Where there are as many key/value heads as heads (Gemma 7B).
FUSED_QKV = {
    "q": TensorSpec(_QKV, "dnh", ("n", "d", "h"), part=(0,)),
    "k": TensorSpec(_QKV, "dkh", ("k", "d", "h"), part=(1,)),
    "v": TensorSpec(_QKV, "dkh", ("k", "d", "h"), part=(2,)),
}
_GATING = "layer_{i}/mlp/gating_einsum/w"
GATING = {
    "gate": TensorSpec(_GATING, "df", ("d", "f"), part=(0,)),
    "up": TensorSpec(_GATING, "df", ("d", "f"), part=(1,)),
}
# Gemma 2 9B and 27B, and every Gemma 3.
TRANSPOSED_GATING = {
    "gate": TensorSpec(_GATING, "df", ("f", "d"), part=(0,)),
    "up": TensorSpec(_GATING, "df", ("f", "d"), part=(1,)),
}
FOREIGN = {
    "skip_scale": "Gemma 4: load its Hugging Face folder",
    "altup": "Gemma 3n",
    "stacked_layers/": "a checkpoint with stacked layers",
    "SimulateQuantized": "a quantized checkpoint",
}


def open_checkpoint(path: str | os.PathLike, config: DecoderConfig | None = None) -> OpenCheckpoint:
    """The checkpoint at a path; nothing is read but names and shapes.

    Args:
      path: see OrbaxTree.
      config: the decoder, for sizes that were never released: the files hold arrays only, and
        windows, caps and scales of released sizes are known here.

    Raises:
      UserError: no Gemma 1, 2 or 3, or a size that was not released and no `config`.
    """
    tree = OrbaxTree(path)
    _refuse_foreign(tree)
    shapes = infer_shapes(tree)
    config = released_config(tree) if config is None else config
    for name in ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "mlp_hidden"):
        if getattr(config, name) != shapes[name]:
            raise UserError(
                f"{tree.folder} has {name}={shapes[name]}, and config {getattr(config, name)}"
            )
    layer = LAYER | (FUSED_QKV if _fused(tree) else SPLIT_QKV)
    layer |= TRANSPOSED_GATING if _transposed(tree, shapes) else GATING
    weight_map = functools.partial(make_weight_map, top=TOP, layer=layer)
    return OpenCheckpoint(tree.folder.name, config, weight_map, tree)


def infer_shapes(tree: OrbaxTree) -> dict[str, int]:
    """vocab_size, d_model, layers, heads, kv_heads, head_dim and mlp_hidden, by the arrays.

    Raises:
      UserError: one of the arrays that tell is missing or of another rank.
    """
    vocab_size, d_model = _shape(tree, "embedder/input_embedding", 2)
    heads, head_dim, _ = _shape(tree, "layer_0/attn/attn_vec_einsum/w", 3)
    kv_heads = heads if _fused(tree) else _shape(tree, _KV.format(i=0), 4)[1]
    layers = [re.match(r"layer_(\d+)/", name) for name in tree.names]
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "layers": 1 + max(int(layer[1]) for layer in layers if layer),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_hidden": _shape(tree, "layer_0/mlp/linear/w", 2)[0],
    }


def generation(tree: OrbaxTree) -> int:
    """1, 2 (norms after attention and MLP) or 3 (norms of queries and keys)."""
    names = set(tree.names)
    if LAYER["q_norm"].name.format(i=0) in names:
        return 3
    return 2 if LAYER["post_attention_norm"].name.format(i=0) in names else 1


def _refuse_foreign(tree: OrbaxTree) -> None:
    for mark, what in FOREIGN.items():
        if foreign := next((name for name in tree.names if mark in name), None):
            raise UserError(
                f"{tree.folder}: {foreign} is of {what}; supported: Gemma 1, 2 and 3, not quantized"
            )


def _fused(tree: OrbaxTree) -> bool:
    return _QKV.format(i=0) in tree.names


def _transposed(tree: OrbaxTree, shapes: Mapping[str, int]) -> bool:
    # No released Gemma has mlp_hidden = d_model; only there would this be a guess.
    gating = _shape(tree, _GATING.format(i=0), 3)
    return gating != (2, shapes["d_model"], shapes["mlp_hidden"])


def _shape(tree: OrbaxTree, name: str, rank: int) -> tuple[int, ...]:
    shape = tree.shape(name)
    if len(shape) != rank:
        raise UserError(f"{tree.folder}: {name} has the shape {shape}, not {rank} axes")
    return shape


# --- what the arrays do not tell --------------------------------------------------------------

# (generation, d_model, layers) -> window of the local layers, what the positions of the global ones
# are divided by, and what d_model is divided by for the scale of queries (None: by head_dim).
RELEASED = {
    (1, 2048, 18): (None, 1, None),  # Gemma 2B
    (1, 3072, 28): (None, 1, None),  # 7B
    (2, 2304, 26): (4096, 1, None),  # Gemma 2 2B
    (2, 3584, 42): (4096, 1, None),  # 9B
    (2, 4608, 46): (4096, 1, 32),  # 27B
    (3, 640, 18): (512, 1, None),  # Gemma 3 270M
    (3, 1152, 26): (512, 1, None),  # 1B
    (3, 2560, 34): (1024, 8, None),  # 4B
    (3, 3840, 48): (1024, 8, None),  # 12B
    (3, 5376, 62): (1024, 8, 32),  # 27B
}


def released_config(tree: OrbaxTree) -> DecoderConfig:
    """The decoder of a released size.

    Raises:
      UserError: not a released size.
    """
    shapes, number = infer_shapes(tree), generation(tree)
    key = number, shapes["d_model"], shapes["layers"]
    if key not in RELEASED:
        sizes = ", ".join(f"Gemma {g} {w} x {n} layers" for g, w, n in RELEASED)
        raise UserError(
            f"{tree.folder} is Gemma {number} of width {key[1]} with {key[2]} layers, which was"
            f" never released, and the files do not hold windows, caps and scales: give"
            f" config=gemma_orbax.decoder_config(...). Released: {sizes}"
        )
    window, factor, divisor = RELEASED[key]
    scale = None if divisor is None else (shapes["d_model"] / divisor) ** -0.5
    return decoder_config(number, shapes, window=window, factor=factor, query_scale=scale)


def decoder_config(
    generation: int,
    shapes: Mapping[str, int],
    *,
    window: int | None,
    factor: float = 1.0,
    query_scale: float | None = None,
    caps: tuple[float, float] = (50.0, 30.0),
) -> DecoderConfig:
    """The decoder of a generation.

    Args:
      generation: 1, 2 or 3.
      shapes: as `infer_shapes` gives them.
      window: of the local layers.
      factor: what the positions of the global layers of Gemma 3 are divided by.
      query_scale: what logits are multiplied by; 1 / sqrt(head_dim) where not given.
      caps: Gemma 2's, of attention logits and of final ones.
    """
    sizes: dict[str, Any] = dict(shapes)
    common = DecoderConfig(**sizes, bos=2)
    if generation == 1:
        return common
    scale = None if query_scale is None else LogitScale(query_scale)
    if generation == 2:
        global_layer = LayerSpec(query_scale=scale, score_function=SoftCap(caps[0]))
        pattern = dataclasses.replace(global_layer, window=window), global_layer
        return dataclasses.replace(common, pattern=pattern, post_norms=True, final_cap=caps[1])
    slow = rotary.rope(1e6) if factor == 1 else rotary.linear_rope(factor, 1e6)
    local_layer = LayerSpec(window=window, query_scale=scale, qk_norm=QKNorm())
    global_layer = dataclasses.replace(local_layer, window=None, rotary=slow)
    return dataclasses.replace(common, pattern=(*[local_layer] * 5, global_layer), post_norms=True)
