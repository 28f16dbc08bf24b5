"""The Gemma-like decoder: the Linen module that owns the parameters, and the forward pass.

Linen declares parameters and nothing else; a layer is the plain function `layer.layer`. B batch,
T length, D d_model, V vocabulary, P per_layer_dim.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rope_study.decoder import attention, loss
from rope_study.decoder.config import DecoderConfig, LayerSpec, check_ids
from rope_study.decoder.documents import in_window
from rope_study.decoder.hooks import Edit, Probe
from rope_study.decoder.layer import (
    KeyValues,
    Weights,
    layer,
    layer_parameters,
    norm_scale,
    shared_parameters,
)
from rope_study.decoder.norms import rms_norm
from rope_study.decoder.query_scaling import keys_read
from rope_study.sharding import Layout
from rope_study.sharding.parameter import Parameter

Array = jax.Array


class Decoder(nn.Module):
    """Owns the parameters; `init` and `apply` are pure functions.

    Parameters (`parameter_tree`), the same whether layers are scanned or unrolled: embedding
    [V, D], final_norm [D], pattern_i - place i of the pattern, arrays of `layer_parameters` stacked
    over its repeats - and remainder_i, the layers left over when the pattern does not fit evenly.
    Where layers share arrays, `shared` has them; where the output table is its own, `unembedding`
    [V, D]; and where layers read the tokens anew, `per_layer_embedding` [per_layer_vocab_size,
    layers, P], `per_layer_projection` [D, layers, P] and `per_layer_projection_norm` [P].
    """

    config: DecoderConfig
    layout: Layout | None = None

    def setup(self):
        """Declares every parameter, in the order of `parameter_tree`."""
        for name, declared in parameter_tree(self.config).items():
            setattr(self, name, self._declare(name, declared))
        groups = self.config.layer_groups
        self.repeated = [getattr(self, g) for g, _, _ in groups if g.startswith("pattern")]
        self.remainder = [getattr(self, g) for g, _, _ in groups if g.startswith("remainder")]

    def _declare(self, name: str, declared: Parameter | dict[str, Parameter]) -> Any:
        if isinstance(declared, Parameter):
            return self.param(name, declared.initializer(), declared.shape)

        def init(key: Array) -> dict:
            keys = jax.random.split(key, len(declared))
            return {
                array: p.initializer()(k, p.shape)
                for k, (array, p) in zip(keys, declared.items(), strict=True)
            }

        return self.param(name, init)

    @property
    def output_table(self) -> Array:
        """[V, D], what features become logits by: the embedding where the two are tied."""
        return self.embedding if self.config.tied else self.unembedding

    @property
    def _shared(self) -> Weights:
        return self.shared if shared_parameters(self.config) else {}

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

        A program that is compiled as a whole cannot refuse ids: there one outside the vocabulary
        is read as another. `check_tokens` refuses it on the host.

        Args:
          tokens: int[B, T].
          positions: int[B or 1, T]; 0, 1, 2, ... where not given.
          probes: each reads every layer's activations.
          weights: f32[B, T], which tokens the probes count; all where not given.
          edit: replaces activations (see hooks.HOOK_POINTS for their names).

        Returns:
          (logits, aux): aux[probe.name][layer] is what that probe measured there.

        Raises:
          UserError: an id outside the vocabulary, outside of `jax.jit`.
        """
        x, aux = self.features(tokens, positions, probes=probes, weights=weights, edit=edit)
        return self._logits(x), aux

    def _logits(self, x: Array) -> Array:
        """f32[B, T, V] for features x[B, T, D]."""
        logits = jnp.einsum(
            "btd,vd->btv", x, self.output_table.astype(x.dtype),
            preferred_element_type=jnp.float32, precision=attention.precision(x.dtype),
        )  # fmt: skip
        return loss.soft_cap(logits, self.config.final_cap)

    def loss(self, tokens: Array, targets: Array, weights: Array | None = None) -> Array:
        """Weighted sum over targets int[B, T] of their negative log likelihood, in nats."""
        x, _ = self.features(tokens)
        weights = jnp.ones(tokens.shape, jnp.float32) if weights is None else weights
        with jax.named_scope("loss"):
            return loss.cross_entropy(
                x, self.output_table, targets, weights, self.layout, cap=self.config.final_cap
            )

    def token_losses(self, tokens: Array, targets: Array, edit: Edit | None = None) -> Array:
        """Negative log likelihood f32[B, T] of every target int[B, T], in nats; no gradients."""
        x, _ = self.features(tokens, edit=edit)
        return loss.token_losses(
            x, self.output_table, targets, self.layout, cap=self.config.final_cap
        )

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
        x, measured, _ = self._forward(tokens, positions, None, probes, weights, edit)
        return x, {probe.name: [layer[probe.name] for layer in measured] for probe in probes}

    def keys(self, tokens: Array) -> list[KeyValues]:
        """The keys of every place of the pattern, stacked over repeats, and of what is left."""
        return self._forward(tokens, keep=True)[2]

    def extend(
        self, tokens: Array, cache: list[KeyValues], start: Array
    ) -> tuple[Array, list[KeyValues]]:
        """Logits f32[B, V] after the last of tokens int[B, T] that follow `start` cached ones.

        Args:
          cache: as `keys` gives it, with room for all tokens to come (see decoder.sampling).
          start: int, how many tokens the cache holds.

        Returns:
          (logits, the cache with these tokens).
        """
        x, _, cache = self._forward(tokens, cache=cache, start=start, keep=True)
        return self._logits(x[:, -1:])[:, 0], cache

    def _forward(
        self,
        tokens: Array,
        positions: Array | None = None,
        cache: list[KeyValues] | None = None,
        probes: Sequence[Probe] = (),
        weights: Array | None = None,
        edit: Edit | None = None,
        start: Array | int = 0,
        keep: bool = False,
    ) -> tuple[Array, list[dict], list[KeyValues]]:
        """Features [B, T, D], what the probes measured in each layer, and the keys to keep."""
        c, T = self.config, tokens.shape[1]
        # The first tokens of a cache have none before them: any backend reads them.
        first = cache is None or (isinstance(start, int) and start == 0)
        rows = None if first else start + jnp.arange(T)
        default_positions = positions is None
        if positions is None:
            positions = jnp.arange(T)[None] if rows is None else rows[None]
        if weights is None:
            weights = jnp.ones(tokens.shape, jnp.float32)
        documents = None
        # What is generated follows one text.
        if c.masks_documents and cache is None and not keep:
            documents, in_document = in_window(tokens, c)
            positions = in_document if default_positions else positions
        embedded = self.embed(tokens)
        per_layer_inputs = self._per_layer_inputs(tokens, embedded) if c.per_layer_dim else None
        late = [probe for probe in probes if "residual" in probe.reads]
        early = [probe for probe in probes if probe not in late]

        def run_layer(
            x: Array,
            w: Weights,
            spec: LayerSpec,
            index: Array,
            cached: KeyValues,
            source: KeyValues | None,
        ):
            places = jnp.arange(T) if rows is None else rows
            counts = keys_read(places, spec.window, spec.chunk)
            activations: dict[str, Any] = {"tokens": tokens, "key_counts": counts}
            measured = {}

            def measure(probes: list[Probe]) -> dict[str, Any]:
                return {probe.name: probe.measure(activations, weights) for probe in probes}

            def hook(name: str, value: Any) -> Any:
                if edit is not None and not callable(value):
                    value = edit(name, index, value)
                activations[name] = value
                if name == "attention_output" and early:
                    # Before the MLP begins, so that queries and keys are not held through it.
                    both = activations[name], measure(early)
                    activations[name], sums = jax.lax.optimization_barrier(both)
                    measured.update(sums)
                return activations[name]

            def extend_keys(new: KeyValues | None) -> KeyValues:
                if new is None:
                    assert source is not None
                    return source
                return write(cached, new, start) if cached else new

            layer_input = None if per_layer_inputs is None else per_layer_inputs[:, :, index]
            x, keys = layer(
                x, {**w, **self._shared}, positions, spec, c, hook, extend_keys, rows,
                layer_input, self.layout, documents,
            )  # fmt: skip
            measured.update(measure(late))
            return self._constrain(x), measured, keys

        run_layer = _rematerialised(run_layer, c.remat)
        x, measured, keys = self._run_layers(run_layer, embedded, cache, keep)
        return rms_norm(x, self.final_norm, c.norm_epsilon, c.norm_offset), measured, keys

    def embed(self, tokens: Array) -> Array:
        """tokens int[B, T] -> [B, T, D] in the compute dtype."""
        is_traced = isinstance(tokens, Tracer)
        if not is_traced and getattr(tokens, "is_fully_addressable", True):  # all on this host
            check_ids(self.config, np.asarray(tokens))
        dtype = jnp.dtype(self.config.compute_dtype)
        x = self._look_up(self.embedding, tokens).astype(dtype)
        if self.config.scale_embedding:
            # Gemma rounds sqrt(d_model) to the compute dtype before it multiplies.
            x = x * jnp.asarray(self.config.d_model**0.5, dtype)
        return self._constrain(x)

    def _per_layer_inputs(self, tokens: Array, embedded: Array) -> Array:
        """What each layer reads of the tokens themselves, [B, T, layers, P] (Gemma 4).

        Half of it is a table of its own, half a projection of the first embedding [B, T, D].
        """
        c, dtype = self.config, embedded.dtype
        projected = jnp.einsum(
            "btd,dlp->btlp", embedded, self.per_layer_projection.astype(dtype),
            precision=attention.precision(dtype),
        ) * jnp.asarray(c.d_model**-0.5, dtype)  # fmt: skip
        projected = rms_norm(
            projected, self.per_layer_projection_norm, c.norm_epsilon, c.norm_offset
        )
        scale = jnp.asarray(c.per_layer_dim**0.5, dtype)
        looked_up = self._look_up(self.per_layer_embedding, tokens).astype(dtype) * scale
        return (projected + looked_up) * jnp.asarray(2**-0.5, dtype)

    def _look_up(self, table: Array, tokens: Array) -> Array:
        """Rows [B, T, ..., D] of a table [V, ..., D] for tokens int[B, T].

        Devices that share the table by its width look the tokens of all of them up in their part
        of it, and exchange what they found: the gradient of a part is then complete where it is,
        and no device sums one of the whole table.
        """
        if self.layout is None:
            return table[tokens]
        layout = self.layout.whole_where_uneven(batch=tokens.shape[0], length=tokens.shape[1])
        rules, between = layout.rules, [None] * (table.ndim - 2)
        shared = [axis for axis in rules.batch + rules.length if axis in rules.embed]
        if math.prod(layout.mesh.shape[axis] for axis in shared) == 1:
            return table[tokens]
        batch, length = (
            tuple(axis for axis in axes if axis not in shared)
            for axes in (rules.batch, rules.length)
        )
        by_width = layout.with_rules(batch=batch, length=length)
        x = table[by_width.constrain(tokens, "batch", "length")]
        x = by_width.constrain(x, "batch", "length", *between, "embed")
        # First the batch, then the length: of both in one step XLA would make x whole.
        embed = tuple(axis for axis in rules.embed if axis not in rules.batch)
        by_batch = layout.with_rules(length=length, embed=embed)
        x = by_batch.constrain(x, "batch", "length", *between, "embed")
        return layout.constrain(x, "batch", "length", *between, None)

    def _run_layers(
        self, run_layer: Callable, x: Array, cache: list[KeyValues] | None, keep: bool
    ) -> tuple[Array, list[dict], list[KeyValues]]:
        """All layers in order; returns x, one dict of statistics a layer, and the keys to keep."""
        pattern = self.config.pattern
        repeats = self.config.layers // len(pattern)
        cache = [{}] * (len(self.repeated) + len(self.remainder)) if cache is None else cache
        repeated_cache, left_cache = cache[: len(self.repeated)], cache[len(self.repeated) :]

        def run_places(x: Array, weights: list[Weights], caches: list[KeyValues], first: Array):
            """One repeat of the pattern, or the beginning of one."""
            measured, keys = [], []
            for place, (w, cached) in enumerate(zip(weights, caches, strict=True)):
                spec = pattern[place]
                source = None if spec.keys_from is None else keys[spec.keys_from]
                x, statistics, new = run_layer(x, w, spec, first + place, cached, source)
                measured.append(statistics)
                keys.append(new)
            to_cache = [
                _to_cache(k, s) if keep else {} for k, s in zip(keys, pattern, strict=False)
            ]
            return x, measured, to_cache

        def run_repeat(x: Array, inputs: tuple):
            weights, caches, repeat = inputs
            x, measured, to_cache = run_places(x, weights, caches, repeat * len(pattern))
            return x, (measured, to_cache)

        measured, to_cache = [], []
        if repeats:
            inputs = self.repeated, repeated_cache, jnp.arange(repeats)
            x, (stacked, to_cache) = _scan(run_repeat, x, inputs, repeats, self.config.scan)
            measured = [jax.tree.map(lambda a: a[i], s) for i in range(repeats) for s in stacked]  # noqa: B023
        if self.remainder:
            first = jnp.asarray(repeats * len(pattern))
            x, statistics, left = run_places(x, self.remainder, left_cache, first)
            measured, to_cache = measured + statistics, to_cache + left
        return x, measured, to_cache

    def _constrain(self, x: Array) -> Array:
        if self.layout is None:
            return x
        layout = self.layout.whole_where_uneven(batch=x.shape[0], length=x.shape[1])
        return layout.constrain(x, "batch", "length", None)


def _scan(step: Callable, x: Array, inputs: Any, length: int, compiled_once: bool):
    """jax.lax.scan, or the same unrolled."""
    if compiled_once:
        return jax.lax.scan(step, x, inputs)
    outputs = []
    for i in range(length):
        x, output = step(x, jax.tree.map(lambda a: a[i], inputs))  # noqa: B023
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _to_cache(keys: KeyValues, spec: LayerSpec) -> KeyValues:
    """What a cache holds of a layer: nothing where it reads the keys of another."""
    if spec.keys_from is not None:
        return {}
    return {name: value for name, value in keys.items() if name != "unrotated_k"}


def write(cached: KeyValues, new: KeyValues, start: Array | int) -> KeyValues:
    """The cache with new keys from place `start` on."""
    return {
        name: jax.lax.dynamic_update_slice_in_dim(old, new[name].astype(old.dtype), start, axis=1)
        for name, old in cached.items()
    }


def parameter_tree(config: DecoderConfig) -> dict[str, Parameter | dict[str, Parameter]]:
    """Every array of the decoder, by name; see Decoder.

    The order counts: Flax draws the random key of an array by what was declared before it.
    """
    c = config
    table = Parameter((c.vocab_size, c.d_model), ("vocab", "embed"), c.d_model)
    tree: dict[str, Parameter | dict[str, Parameter]] = {"embedding": table}
    tree["final_norm"] = norm_scale(c)
    for group, place, layers in c.layer_groups:
        parameters = layer_parameters(c, c.pattern[place])
        if group.startswith("pattern"):
            parameters = {name: p.stacked(len(layers)) for name, p in parameters.items()}
        tree[group] = parameters
    if shared := shared_parameters(c):
        tree["shared"] = shared
    if not c.tied:
        tree["unembedding"] = table
    if c.per_layer_dim:
        tree |= _per_layer_parameters(c)
    return tree


def _per_layer_parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """The arrays behind what every layer reads of the tokens themselves (Gemma 4)."""
    D, L, P = config.d_model, config.layers, config.per_layer_dim
    rows = config.per_layer_vocab_size
    return {
        "per_layer_embedding": Parameter((rows, L, P), ("vocab", None, "embed"), P),
        "per_layer_projection": Parameter((D, L, P), ("embed", None, None), D),
        "per_layer_projection_norm": norm_scale(config, P),
    }


def _rematerialised(run_layer: Callable, remat: str) -> Callable:
    if remat == "none":
        return run_layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # Arguments: x, weights, spec (static), index, cached, source.
    return jax.checkpoint(run_layer, policy=policy, static_argnums=(2,))


def parameter_count(config: DecoderConfig) -> int:
    """How many parameters the decoder has, without making them."""
    tree = jax.eval_shape(
        Decoder(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
