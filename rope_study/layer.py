"""One layer of the decoder: a plain function on arrays, and the arrays it needs.

B batch, T tokens, S keys, D width, N query heads, K key/value heads, H head_dim, F mlp_hidden,
P token_width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rope_study import attention
from rope_study.architecture import DecoderConfig, LayerSpec
from rope_study.attention import Weigh
from rope_study.errors import UserError
from rope_study.logits import Inputs
from rope_study.norm import normalise, rms_norm
from rope_study.parameters import Parameter
from rope_study.query import keys_read

Array = jax.Array

# Names that a layer passes through `tap(name, value) -> value`, with their shapes.
ACTIVATIONS = {
    "q": "queries before rotation, normalised and scaled where the layer does so [B, T, N, H]",
    "k": "keys before rotation, normalised where the layer does so [B, T, K, H]",
    "v": "values [B, T, K, H]",
    "q_rotated": "queries after rotation [B, T, N, H]",
    "k_rotated": "keys after rotation [B, T, K, H]",
    "attention": "attention weights, block by block: a function, see `Look`",
    "mixed": "what each head read [B, T, N, H]",
    "residual": "the residual stream after the layer [B, T, D]",
}

# What probes read besides: it belongs to the text and the layer, and no edit changes it.
GIVEN = {
    "tokens": "the ids of the text int[B, T]",
    "reads": "how many keys a query may read, itself and those right before it int[T]",
}

# look(reduce) sums reduce(weights f32[B, N, t, S], queries int[t]) over blocks of the T queries:
# the weights that the layer itself uses, of which no more than a block is ever held.
Look = Callable[[Callable[[Array, Array], Any]], Any]
Tap = Callable[[str, Array | Look], Array]
Weights = Mapping[str, Array]
# What queries read, of every key: "k" (rotated) and "v" [B, S, K, H], "before" (k before rotation),
# "positions" int[B or 1, S], and what the layer's logit function keeps.
Keys = dict[str, Array]
# The keys of these tokens -> all keys to read: where a cache, or the keys of another layer come in.
Recall = Callable[[Keys | None], Keys]


def layer(
    x: Array,
    w: Weights,
    positions: Array,
    spec: LayerSpec,
    config: DecoderConfig,
    tap: Tap,
    recall: Recall | None = None,
    rows: Array | None = None,
    token_input: Array | None = None,
) -> tuple[Array, Keys]:
    """One layer: x[B, T, D] -> [B, T, D], and the keys that it read. Needs no Flax.

    Args:
      x: residual stream in the compute dtype.
      w: the layer's arrays, as in `layer_parameters`, and those of `shared_parameters`.
      positions: int[B or 1, T].
      spec, config: static.
      tap: sees every value named in ACTIVATIONS and returns the one to go on with.
      recall: what it reads besides these tokens' keys; nothing where not given.
      rows: int[T], the places of these tokens among the keys; 0..T-1 where not given.
      token_input: [B, T, P], what the layer reads of the tokens themselves (Gemma 4).
    """
    config = config.of_layer(spec)
    norm = functools.partial(rms_norm, epsilon=config.norm_epsilon, offset=config.norm_offset)
    added, keys = _attention(
        norm(x, w["attention_norm"]), w, positions, spec, config, tap, recall, rows
    )
    x = x + (norm(added, w["post_attention_norm"]) if config.post_norms else added)
    added = _mlp(norm(x, w["mlp_norm"]), w, config)
    x = x + (norm(added, w["post_mlp_norm"]) if config.post_norms else added)
    if token_input is not None:
        gate = _activate(_project("btd,dp->btp", x, w["token_gate"]), config)
        added = _project("btp,pd->btd", gate * token_input, w["token_out"])
        x = x + norm(added, w["token_norm"])
    if config.layer_scalar:
        x = x * w["layer_scalar"].astype(x.dtype)
    return tap("residual", x), keys


def _attention(
    h: Array,
    w: Weights,
    positions: Array,
    spec: LayerSpec,
    config: DecoderConfig,
    tap: Tap,
    recall: Recall | None,
    rows: Array | None,
) -> tuple[Array, Keys]:
    """What attention adds to the residual stream [B, T, D] for normed h[B, T, D], and the keys."""
    q = tap("q", _queries(h, w, positions, spec, config))
    with jax.named_scope("rotary"):
        q_rotated = tap("q_rotated", _rotate(q, positions, w, spec))
    if spec.keys_from is None:
        keys = _keys(h, w, positions, spec, config, tap)
        keys = keys if recall is None else recall(keys)
    else:
        keys = recall(None)
        for name, key in (("k", "before"), ("k_rotated", "k"), ("v", "v")):
            if key in keys:
                keys = keys | {key: tap(name, keys[key])}
    weigh = None
    if spec.logits is not None:
        places = jnp.arange(h.shape[1]) if rows is None else rows
        inputs = Inputs(positions, h, q, places, keys, spec.rotary, w)
        weigh = lambda logits, mask, some: spec.logits.weights(logits, mask, inputs.of(some))  # noqa: E731
    tap("attention", _look(q_rotated, keys["k"], spec, weigh, rows))
    with jax.named_scope("attention"):
        mixed = attention.attend(
            q_rotated, keys["k"], keys["v"], spec.window, config.attention, spec.chunk, weigh, rows
        )
    return _project("btnh,nhd->btd", tap("mixed", mixed), w["o"]), keys


def _look(q: Array, k: Array, spec: LayerSpec, weigh: Weigh | None, rows: Array | None) -> Look:
    """The layer's attention weights as a function that sums over them."""
    rows = jnp.arange(q.shape[1]) if rows is None else rows

    def look(reduce: Callable[[Array, Array], Any]) -> Any:
        def some(queries: Array) -> Any:
            part = jnp.take(q, queries, axis=1)
            weights = attention.probabilities(
                part, k, spec.window, spec.chunk, weigh, rows[queries], queries
            )
            return reduce(weights, queries)

        return attention.sum_over_queries(some, q.shape[1], k.shape[1])

    return look


def _queries(
    h: Array, w: Weights, positions: Array, spec: LayerSpec, config: DecoderConfig
) -> Array:
    """Queries before rotation [B, T, N, H]: QK-norm and query scale where the layer has them."""
    q = _project("btd,dnh->btnh", h, w["q"])
    if spec.qk_norm is not None:
        q = spec.qk_norm(q, w, "q", config)
    if spec.query_scale is not None:
        q = spec.query_scale(q, positions, keys_read(positions, spec.window, spec.chunk), w)
    return q


def _keys(
    h: Array, w: Weights, positions: Array, spec: LayerSpec, config: DecoderConfig, tap: Tap
) -> Keys:
    """Everything that queries read of these tokens."""
    k = _project("btd,dkh->btkh", h, w["k"])
    v = k if spec.keys_as_values else _project("btd,dkh->btkh", h, w["v"])
    if spec.value_norm:
        v = normalise(v, config.norm_epsilon).astype(v.dtype)
    v = tap("v", v)
    k = tap("k", k if spec.qk_norm is None else spec.qk_norm(k, w, "k", config))
    with jax.named_scope("rotary"):
        rotated = tap("k_rotated", _rotate(k, positions, w, spec))
    kept = {} if spec.logits is None else spec.logits.keep(k, h, w)
    return {"k": rotated, "v": v, "before": k, "positions": positions, **kept}


def _rotate(x: Array, positions: Array, w: Weights, spec: LayerSpec) -> Array:
    """An encoding that declares `shared_parameters` also gets the layer's arrays."""
    if hasattr(spec.rotary, "shared_parameters"):
        return spec.rotary(x, positions, w)
    return spec.rotary(x, positions)


def _mlp(h: Array, w: Weights, config: DecoderConfig) -> Array:
    gate = _activate(_project("btd,df->btf", h, w["gate"]), config)
    return _project("btf,fd->btd", gate * _project("btd,df->btf", h, w["up"]), w["down"])


def _activate(x: Array, config: DecoderConfig) -> Array:
    return jax.nn.silu(x) if config.activation == "silu" else jax.nn.gelu(x, approximate=True)


def _project(equation: str, x: Array, weight: Array) -> Array:
    """A product of x with a weight, in x's dtype."""
    return jnp.einsum(equation, x, weight.astype(x.dtype), precision=attention.precision(x.dtype))


# --- parameters -------------------------------------------------------------------------------


def layer_parameters(config: DecoderConfig, spec: LayerSpec) -> dict[str, Parameter]:
    """Every array of one layer; what its parts add comes last, so the rest starts the same."""
    config = config.of_layer(spec)
    D, N, K, H, F, P = (
        config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_hidden,
        config.token_width,
    )  # fmt: skip
    norm = norm_scale(config)
    kv = Parameter((D, K, H), ("embed", "kv_heads", "head_dim"), D)
    parameters = {
        "attention_norm": norm,
        "q": Parameter((D, N, H), ("embed", "heads", "head_dim"), D),
        "k": kv,
        "v": kv,
        "o": Parameter((N, H, D), ("heads", "head_dim", "embed"), N * H),
        "mlp_norm": norm,
        "gate": Parameter((D, F), ("embed", "mlp"), D),
        "up": Parameter((D, F), ("embed", "mlp"), D),
        "down": Parameter((F, D), ("mlp", "embed"), F),
    }
    if config.post_norms:
        parameters |= {"post_attention_norm": norm, "post_mlp_norm": norm}
    if P:
        parameters |= {
            "token_gate": Parameter((D, P), ("embed", None), D),
            "token_out": Parameter((P, D), (None, "embed"), P),
            "token_norm": norm,
        }
    if config.layer_scalar:
        parameters["layer_scalar"] = Parameter((1,), (None,), constant=1.0)
    for part in spec.parts:
        parameters |= part.parameters(config)
    absent = {"v"} if spec.keys_as_values else set()
    if spec.keys_from is not None:
        absent |= {"k", "v", "k_norm"}
    return {name: parameter for name, parameter in parameters.items() if name not in absent}


def norm_scale(config: DecoderConfig, width: int | None = None) -> Parameter:
    """The weight of an RMSNorm, which starts by changing nothing."""
    return Parameter((width or config.width,), (None,), constant=1 - config.norm_offset)


def shared_parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Every array that layers share: of encodings and parts that declare `shared_parameters`.

    Raises:
      UserError: two of them want different arrays of the same name.
    """
    found: dict[str, Parameter] = {}
    for spec in config.pattern:
        for part in (spec.rotary, *spec.parts):
            declare = getattr(part, "shared_parameters", lambda _: {})
            for name, parameter in declare(config).items():
                if found.setdefault(name, parameter) != parameter:
                    raise UserError(
                        f"two layers want different shared arrays {name!r}: {found[name]} and"
                        f" {parameter}; give them the same, or write config.model.pattern anew"
                    )
    return found
