"""The Gemma-like decoder: configuration, the Linen module with the parameters, forward pass.

Linen declares parameters and nothing else; a layer is the plain function `layer`. B batch,
T length, D width, N query heads, K key/value heads, H head_dim, F mlp_hidden, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from rope_study import attention, loss
from rope_study.errors import UserError
from rope_study.logits import Inputs, LogitFunction
from rope_study.norm import QKNorm, QKNormFixed, rms_norm
from rope_study.parallel import Layout
from rope_study.parameters import Parameter
from rope_study.parts import Part
from rope_study.query import QueryScale, keys_read
from rope_study.rotary import Rotary, rope

Array = jax.Array

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer."""

    rotary: Rotary = dataclasses.field(default_factory=rope)
    window: int | None = None  # local attention: how many positions back; None reads all
    chunk: int | None = None  # chunked attention: reads keys of its own chunk of so many positions
    qk_norm: QKNorm | QKNormFixed | None = None
    query_scale: QueryScale | None = None
    logits: LogitFunction | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything but the encoding that may have arrays of its own."""
        return tuple(p for p in (self.qk_norm, self.query_scale, self.logits) if p is not None)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shapes and precision; `pattern` repeats over the layers (Gemma 1: one global layer)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_hidden: int
    pattern: tuple[LayerSpec, ...] = (LayerSpec(),)
    norm_epsilon: float = 1e-6
    compute_dtype: str = "float32"
    attention: str = "reference"
    remat: str = "none"  # what the backward pass recomputes: nothing, a layer, or all but products
    scan: bool = True  # compile one repeat of the pattern, not every layer

    def __post_init__(self):
        _check(self)

    def with_rotary(self, encoding: Rotary) -> "DecoderConfig":
        """The same decoder with one encoding in all of its layers."""
        return self.with_layers(rotary=encoding)

    def with_layers(self, **fields: Any) -> "DecoderConfig":
        """The same decoder with these fields of LayerSpec in all of its layers."""
        pattern = tuple(dataclasses.replace(spec, **fields) for spec in self.pattern)
        return dataclasses.replace(self, pattern=pattern)

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """One spec a layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))


def _check(config: DecoderConfig) -> None:
    for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_hidden"):
        if getattr(config, name) < 1:
            raise UserError(
                f"{name}={getattr(config, name)} must be at least 1; set config.model.{name}"
            )
    if config.head_dim % 2:
        raise UserError(
            f"head_dim={config.head_dim} is odd: rotary pairs need an even head_dim;"
            " set config.model.head_dim"
        )
    if config.heads % config.kv_heads:
        raise UserError(
            f"heads={config.heads} is not a multiple of kv_heads={config.kv_heads}:"
            " set config.model.heads and config.model.kv_heads"
        )
    for name, allowed in (
        ("compute_dtype", DTYPES),
        ("remat", REMAT),
        ("attention", attention.BACKENDS),
    ):
        if getattr(config, name) not in allowed:
            raise UserError(
                f"{name}={getattr(config, name)!r} is not one of {', '.join(allowed)};"
                f" set config.model.{name}"
            )
    for spec in config.pattern:
        _check_layer(spec, config)


def _check_layer(spec: LayerSpec, config: DecoderConfig) -> None:
    for name in ("window", "chunk"):
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1; set config.model.pattern")
    if config.attention != "reference" and (spec.logits or spec.chunk):
        what = spec.logits.name if spec.logits else f"chunk={spec.chunk}"
        raise UserError(
            f"{what} runs on the reference backend only, not on {config.attention!r};"
            " set config.model.attention='reference'"
        )


# --- one layer --------------------------------------------------------------------------------

# Names that a layer passes through `tap(name, value) -> value`, with their shapes.
ACTIVATIONS = {
    "q": "queries before rotation, normalised and scaled where the layer does so [B, T, N, H]",
    "k": "keys before rotation, normalised where the layer does so [B, T, K, H]",
    "v": "values [B, T, K, H]",
    "q_rotated": "queries after rotation [B, T, N, H]",
    "k_rotated": "keys after rotation [B, T, K, H]",
    "mixed": "what each head read [B, T, N, H]",
    "residual": "the residual stream after the layer [B, T, D]",
}

Tap = Callable[[str, Array], Array]
Weights = Mapping[str, Array]


def layer(
    x: Array, w: Weights, positions: Array, spec: LayerSpec, config: DecoderConfig, tap: Tap
) -> Array:
    """One Gemma layer: x[B, T, D] -> [B, T, D]. Needs no Flax.

    Args:
      x: residual stream in the compute dtype.
      w: the layer's arrays, as in `layer_parameters`, and those of `shared_parameters`.
      positions: int[B or 1, T].
      spec, config: static.
      tap: sees every value named in ACTIVATIONS and returns the one to go on with.
    """
    h = rms_norm(x, w["attention_norm"], config.norm_epsilon)
    q, k = _project("btd,dnh->btnh", h, w["q"]), _project("btd,dkh->btkh", h, w["k"])
    v = tap("v", _project("btd,dkh->btkh", h, w["v"]))
    q, k = _prepare(q, k, positions, w, spec, config)
    q, k = tap("q", q), tap("k", k)
    with jax.named_scope("rotary"):
        q_rotated = tap("q_rotated", _rotate(q, positions, w, spec))
        k_rotated = tap("k_rotated", _rotate(k, positions, w, spec))
    weigh = None
    if spec.logits is not None:
        inputs = Inputs(positions, h, q, k, spec.rotary, w)
        weigh = functools.partial(spec.logits.weights, inputs=inputs)
    with jax.named_scope("attention"):
        mixed = attention.attend(
            q_rotated, k_rotated, v, spec.window, config.attention, spec.chunk, weigh
        )
    mixed = tap("mixed", mixed)
    x = x + _project("btnh,nhd->btd", mixed, w["o"])
    h = rms_norm(x, w["mlp_norm"], config.norm_epsilon)
    gate = jax.nn.gelu(_project("btd,df->btf", h, w["gate"]), approximate=True)
    x = x + _project("btf,fd->btd", gate * _project("btd,df->btf", h, w["up"]), w["down"])
    return tap("residual", x)


def _prepare(
    q: Array, k: Array, positions: Array, w: Weights, spec: LayerSpec, config: DecoderConfig
) -> tuple[Array, Array]:
    """QK-norm and query scale, where the layer has them."""
    if spec.qk_norm is not None:
        q, k = spec.qk_norm(q, k, w, config.norm_epsilon)
    if spec.query_scale is not None:
        q = spec.query_scale(q, positions, keys_read(positions, spec.window, spec.chunk), w)
    return q, k


def _rotate(x: Array, positions: Array, w: Weights, spec: LayerSpec) -> Array:
    """An encoding that declares `shared_parameters` also gets the layer's arrays."""
    if hasattr(spec.rotary, "shared_parameters"):
        return spec.rotary(x, positions, w)
    return spec.rotary(x, positions)


def _project(equation: str, x: Array, weight: Array) -> Array:
    """A product of x with an f32 weight, in x's dtype."""
    return jnp.einsum(equation, x, weight.astype(x.dtype), precision=attention.precision(x.dtype))


# --- parameters -------------------------------------------------------------------------------


def layer_parameters(config: DecoderConfig, spec: LayerSpec) -> dict[str, Parameter]:
    """Every array of one layer; what its parts add comes last, so the rest starts the same."""
    D, N, K, H, F = (
        config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_hidden
    )  # fmt: skip
    parameters = {
        "attention_norm": Parameter((D,), (None,)),
        "q": Parameter((D, N, H), ("embed", "heads", "head_dim"), D),
        "k": Parameter((D, K, H), ("embed", "kv_heads", "head_dim"), D),
        "v": Parameter((D, K, H), ("embed", "kv_heads", "head_dim"), D),
        "o": Parameter((N, H, D), ("heads", "head_dim", "embed"), N * H),
        "mlp_norm": Parameter((D,), (None,)),
        "gate": Parameter((D, F), ("embed", "mlp"), D),
        "up": Parameter((D, F), ("embed", "mlp"), D),
        "down": Parameter((F, D), ("mlp", "embed"), F),
    }
    for part in spec.parts:
        parameters |= part.parameters(config)
    return parameters


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


# --- the whole decoder ------------------------------------------------------------------------


class Probe(Protocol):
    """What the forward pass asks of a probe (see rope_study.probes)."""

    name: str

    def measure(self, activations: Mapping[str, Array], weights: Array) -> Any:
        """Additive statistics of one layer; `weights` f32[B, T] is 0 on padding."""


# (name, layer index, value) -> value: replaces an activation, for interventions.
Edit = Callable[[str, Array, Array], Array]


class Decoder(nn.Module):
    """Owns the parameters; `init` and `apply` are pure functions.

    Parameters, the same whether layers are scanned or unrolled: embedding [V, D], final_norm [D],
    pattern_i - place i of the pattern, arrays of `layer_parameters` stacked over its repeats - and
    remainder_i, the layers left over when the pattern does not fit evenly. Where layers share
    arrays, `shared` has them.
    """

    config: DecoderConfig
    layout: Layout | None = None

    def setup(self):
        """Declares every parameter."""
        c = self.config
        table = Parameter((c.vocab_size, c.width), ("vocab", "embed"), c.width)
        self.embedding = self.param("embedding", table.initializer(), table.shape)
        norm = Parameter((c.width,), (None,))
        self.final_norm = self.param("final_norm", norm.initializer(), norm.shape)
        repeats, left = divmod(c.layers, len(c.pattern))
        places = range(len(c.pattern)) if repeats else ()
        self.repeated = [self._declare_layer(f"pattern_{i}", i, repeats) for i in places]
        self.remainder = [self._declare_layer(f"remainder_{i}", i, None) for i in range(left)]
        # Last: Flax counts what was declared before into the random key.
        shared = shared_parameters(c)
        self.shared = self._declare("shared", shared) if shared else {}

    def _declare_layer(self, name: str, place: int, repeats: int | None) -> dict[str, Array]:
        parameters = layer_parameters(self.config, self.config.pattern[place])
        if repeats is not None:
            parameters = {key: p.stacked(repeats) for key, p in parameters.items()}
        return self._declare(name, parameters)

    def _declare(self, name: str, parameters: dict[str, Parameter]) -> dict[str, Array]:
        def init(key: Array) -> dict:
            keys = jax.random.split(key, len(parameters))
            return {
                array: p.initializer()(k, p.shape)
                for k, (array, p) in zip(keys, parameters.items(), strict=True)
            }

        return self.param(name, init)

    def __call__(
        self,
        tokens: Array,
        positions: Array | None = None,
        *,
        probes: Sequence[Probe] = (),
        weights: Array | None = None,
        edit: Edit | None = None,
    ) -> tuple[Array, dict[str, list]]:
        """Logits f32[B, T, V] for tokens int[B, T], and what the probes measured.

        Args:
          tokens: int[B, T].
          positions: int[B or 1, T]; 0, 1, 2, ... where not given.
          probes: each reads every layer's activations.
          weights: f32[B, T], which tokens the probes count; all where not given.
          edit: replaces activations (see rope_study.decoder.ACTIVATIONS for their names).

        Returns:
          (logits, aux): aux[probe.name][layer] is what that probe measured there.
        """
        x, aux = self.features(tokens, positions, probes=probes, weights=weights, edit=edit)
        logits = jnp.einsum(
            "btd,vd->btv", x, self.embedding.astype(x.dtype),
            preferred_element_type=jnp.float32, precision=attention.precision(x.dtype),
        )  # fmt: skip
        return logits, aux

    def loss(self, tokens: Array, targets: Array, weights: Array | None = None) -> Array:
        """Weighted sum over targets int[B, T] of their negative log likelihood, in nats."""
        x, _ = self.features(tokens)
        weights = jnp.ones(tokens.shape, jnp.float32) if weights is None else weights
        return loss.cross_entropy(x, self.embedding, targets, weights, self.layout)

    def token_losses(self, tokens: Array, targets: Array, edit: Edit | None = None) -> Array:
        """Negative log likelihood f32[B, T] of every target int[B, T], in nats; no gradients."""
        x, _ = self.features(tokens, edit=edit)
        return loss.token_losses(x, self.embedding, targets, self.layout)

    def features(
        self,
        tokens: Array,
        positions: Array | None = None,
        *,
        probes: Sequence[Probe] = (),
        weights: Array | None = None,
        edit: Edit | None = None,
    ) -> tuple[Array, dict[str, list]]:
        """The forward pass up to the final norm: [B, T, D] and aux; arguments as in __call__."""
        c = self.config
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        if weights is None:
            weights = jnp.ones(tokens.shape, jnp.float32)

        def run_layer(x: Array, w: Weights, spec: LayerSpec, index: Array):
            activations: dict[str, Array] = {}

            def tap(name: str, value: Array) -> Array:
                activations[name] = value if edit is None else edit(name, index, value)
                return activations[name]

            x = self._constrain(layer(x, {**w, **self.shared}, positions, spec, c, tap))
            return x, {probe.name: probe.measure(activations, weights) for probe in probes}

        run_layer = _rematerialised(run_layer, c.remat)
        dtype = jnp.dtype(c.compute_dtype)
        # Gemma rounds sqrt(width) to the compute dtype before it multiplies.
        x = self.embedding.astype(dtype)[tokens] * jnp.asarray(c.width**0.5, dtype)
        x, measured = self._run_layers(run_layer, self._constrain(x))
        x = rms_norm(x, self.final_norm, c.norm_epsilon)
        return x, {probe.name: [one[probe.name] for one in measured] for probe in probes}

    def _run_layers(self, run_layer: Callable, x: Array) -> tuple[Array, list[dict]]:
        """All layers in order; returns x and one dict of statistics a layer."""
        pattern = self.config.pattern
        repeats = self.config.layers // len(pattern)

        def run_repeat(x: Array, inputs: tuple[list[Weights], Array]):
            stacks, repeat = inputs
            measured = []
            for place, (w, spec) in enumerate(zip(stacks, pattern, strict=True)):
                x, statistics = run_layer(x, w, spec, repeat * len(pattern) + place)
                measured.append(statistics)
            return x, measured

        measured = []
        if repeats and self.config.scan:
            x, stacked = jax.lax.scan(run_repeat, x, (self.repeated, jnp.arange(repeats)))
            measured = [jax.tree.map(lambda a: a[i], s) for i in range(repeats) for s in stacked]  # noqa: B023
        elif repeats:
            for i in range(repeats):
                weights = jax.tree.map(lambda a: a[i], self.repeated)  # noqa: B023
                x, statistics = run_repeat(x, (weights, jnp.asarray(i)))
                measured += statistics
        for i, w in enumerate(self.remainder):
            x, statistics = run_layer(x, w, pattern[i], jnp.asarray(repeats * len(pattern) + i))
            measured.append(statistics)
        return x, measured

    def _constrain(self, x: Array) -> Array:
        return x if self.layout is None else self.layout.constrain(x, "batch", "length", None)


def _rematerialised(run_layer: Callable, remat: str) -> Callable:
    if remat == "none":
        return run_layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # Arguments: x, weights, spec (static), index.
    return jax.checkpoint(run_layer, policy=policy, static_argnums=(2,))


def fit_layout(config: DecoderConfig, layout: Layout) -> Layout:
    """The layout to run this decoder in: kv_heads stay whole where there are too few to split.

    Raises:
      UserError: another dimension does not divide over its devices.
    """
    if config.kv_heads % layout.shards("kv_heads"):
        layout = dataclasses.replace(layout, rules=dataclasses.replace(layout.rules, kv_heads=None))
    dimensions = {"embed": "width", "heads": "heads", "mlp": "mlp_hidden", "vocab": "vocab_size"}
    for axis, field in dimensions.items():
        if getattr(config, field) % layout.shards(axis):
            raise UserError(
                f"{field}={getattr(config, field)} does not divide over {layout.shards(axis)}"
                f" devices; set config.model.{field} or config.mesh"
            )
    return layout


def parameter_count(config: DecoderConfig) -> int:
    """How many parameters the decoder has, without making them."""
    tree = jax.eval_shape(
        Decoder(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
