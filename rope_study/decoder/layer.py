"""One layer of the decoder: a plain function on arrays, and the arrays it needs.

B batch, T tokens, S keys, D d_model, N query heads, K key/value heads, H head_dim, F mlp_hidden,
P per_layer_dim.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rope_study.decoder import attention
from rope_study.decoder.attention_scores import ScoreInputs
from rope_study.decoder.config import DecoderConfig, LayerSpec
from rope_study.decoder.hooks import Hook
from rope_study.decoder.norms import normalise, rms_norm
from rope_study.decoder.query_scaling import keys_read
from rope_study.errors import UserError
from rope_study.registry import Component
from rope_study.sharding import Layout
from rope_study.sharding.parameter import Parameter

Array = jax.Array

Weights = Mapping[str, Array]
# What queries read, of every key: "k" (rotated) and "v" [B, S, K, H], "unrotated_k" [B, S, K, H],
# "positions" int[B or 1, S], what the layer's score function keeps, and, where there are several in
# a window, "documents" int[B, S].
KeyValues = dict[str, Array]
# Those of these tokens -> all to read: where a cache, or those of another layer come in.
ExtendKeys = Callable[[KeyValues | None], KeyValues]


def layer(
    x: Array,
    w: Weights,
    positions: Array,
    spec: LayerSpec,
    config: DecoderConfig,
    hook: Hook,
    extend_keys: ExtendKeys | None = None,
    rows: Array | None = None,
    per_layer_input: Array | None = None,
    layout: Layout | None = None,
    documents: Array | None = None,
) -> tuple[Array, KeyValues]:
    """One layer: x[B, T, D] -> [B, T, D], and the keys that it read. Needs no Flax.

    Args:
      x: residual stream in the compute dtype.
      w: the layer's arrays, as in `layer_parameters`, and those of `shared_parameters`.
      positions: int[B or 1, T].
      spec, config: static.
      hook: sees every value named in hooks.HOOK_POINTS and returns the one to go on with.
      extend_keys: adds what it reads besides these tokens' keys; nothing where not given.
      rows: int[T], the places of these tokens among the keys; 0..T-1 where not given.
      per_layer_input: [B, T, P], what the layer reads of the tokens themselves (Gemma 4).
      layout: the devices, by which the attention backend is chosen and shared.
      documents: int[B, T], the document that each token is of; it reads no other. One where None.
    """
    config = config.of_layer(spec)
    norm = functools.partial(rms_norm, epsilon=config.norm_epsilon, offset=config.norm_offset)
    added, keys = _attention(
        norm(x, w["attention_norm"]), w, positions, spec, config, hook, extend_keys, rows, layout,
        documents,
    )  # fmt: skip
    x = x + (norm(added, w["post_attention_norm"]) if config.post_norms else added)
    with jax.named_scope("mlp"):
        added = _mlp(norm(x, w["mlp_norm"]), w, config)
    x = x + (norm(added, w["post_mlp_norm"]) if config.post_norms else added)
    if per_layer_input is not None:
        gate = _activate(_project("btd,dp->btp", x, w["per_layer_gate"]), config)
        added = _project("btp,pd->btd", gate * per_layer_input, w["per_layer_out"])
        x = x + norm(added, w["per_layer_norm"])
    if config.layer_scalar:
        x = x * w["layer_scalar"].astype(x.dtype)
    return hook("residual", x), keys


def _attention(
    h: Array,
    w: Weights,
    positions: Array,
    spec: LayerSpec,
    config: DecoderConfig,
    hook: Hook,
    extend_keys: ExtendKeys | None,
    rows: Array | None,
    layout: Layout | None,
    documents: Array | None,
) -> tuple[Array, KeyValues]:
    """What attention adds to the residual stream [B, T, D] for normed h[B, T, D], and the keys."""
    q = hook("q", _queries(h, w, positions, spec, config))
    with jax.named_scope("rotary"):
        q_rotated = hook("q_rotated", _rotate(q, positions, w, spec))
    if spec.keys_from is None:
        keys = _keys(h, w, positions, spec, config, hook)
        keys = keys if extend_keys is None else extend_keys(keys)
    else:
        assert extend_keys is not None, "only a decoder can say which keys those are"
        keys = extend_keys(None)
        for name, key in (("k", "unrotated_k"), ("k_rotated", "k"), ("v", "v")):
            if key in keys:
                keys = keys | {key: hook(name, keys[key])}
    if documents is not None:
        keys = keys | {"documents": documents}
    inputs = None
    if spec.score_function is not None:
        places = jnp.arange(h.shape[1]) if rows is None else rows
        inputs = ScoreInputs(positions, h, q, places, keys, spec.rotary, w)
    hook("attention", attention.weight_sums(spec, layout, q_rotated, keys, inputs, rows))
    with jax.named_scope("attention"):
        output = attention.attend_by(config, spec, layout, q_rotated, keys, inputs, rows)
    return _project("btnh,nhd->btd", hook("attention_output", output), w["o"]), keys


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
    h: Array, w: Weights, positions: Array, spec: LayerSpec, config: DecoderConfig, hook: Hook
) -> KeyValues:
    """Everything that queries read of these tokens."""
    k = _project("btd,dkh->btkh", h, w["k"])
    v = k if spec.keys_as_values else _project("btd,dkh->btkh", h, w["v"])
    if spec.value_norm:
        v = normalise(v, config.norm_epsilon).astype(v.dtype)
    v = hook("v", v)
    k = hook("k", k if spec.qk_norm is None else spec.qk_norm(k, w, "k", config))
    with jax.named_scope("rotary"):
        rotated = hook("k_rotated", _rotate(k, positions, w, spec))
    extra = {} if spec.score_function is None else spec.score_function.keep(k, h, w)
    return {"k": rotated, "v": v, "unrotated_k": k, "positions": positions, **extra}


def _rotate(x: Array, positions: Array, w: Weights, spec: LayerSpec) -> Array:
    """An encoding whose frequencies are trained also gets the layer's arrays."""
    trained = (w,) if getattr(spec.rotary, "trained", False) else ()
    return spec.rotary(x, positions, *trained)


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
    """Every array of one layer; what its components add comes last, so the rest starts the same."""
    config = config.of_layer(spec)
    D, N, K, H, F, P = (
        config.d_model, config.heads, config.kv_heads, config.head_dim, config.mlp_hidden,
        config.per_layer_dim,
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
            "per_layer_gate": Parameter((D, P), ("embed", None), D),
            "per_layer_out": Parameter((P, D), (None, "embed"), P),
            "per_layer_norm": norm,
        }
    if config.layer_scalar:
        parameters["layer_scalar"] = Parameter((1,), (None,), constant=1.0, decay=False)
    for component in spec.components:
        parameters |= component.parameters(config)
    absent = {"v"} if spec.keys_as_values else set()
    if spec.keys_from is not None:
        absent |= {"k", "v", "k_norm"}
    return {name: parameter for name, parameter in parameters.items() if name not in absent}


def norm_scale(config: DecoderConfig, size: int | None = None) -> Parameter:
    """The weight of an RMSNorm, which starts by changing nothing."""
    return Parameter(
        (size or config.d_model,), (None,), constant=1 - config.norm_offset, decay=False
    )


def shared_parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Every array that layers share: of encodings and components that declare `shared_parameters`.

    Raises:
      UserError: two of them want different arrays of the same name.
    """
    shared: dict[str, Parameter] = {}
    for spec in config.pattern:
        for component in (spec.rotary, *spec.components):
            if not isinstance(component, Component):
                continue  # a function of the user's own
            for name, parameter in component.shared_parameters(config).items():
                if shared.setdefault(name, parameter) != parameter:
                    raise UserError(
                        f"two layers want different shared arrays {name!r}: {shared[name]} and"
                        f" {parameter}; give them the same",
                        "pattern",
                    )
    return shared
