"""Interventions as a decoder's edit: tables by layer, head and pair, and what applies them.

B batch, T tokens, N query heads, K key heads, G = N / K query heads that share their keys,
P = H / 2 rotary pairs, L layers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rope_study import rotary
from rope_study.decoder import DecoderConfig, Edit
from rope_study.errors import UserError
from rope_study.interventions.edits import EDITABLE, Intervention
from rope_study.probes.datasets import inverse_frequencies

Array = jax.Array


class Change(NamedTuple):
    """What becomes of one activation's pairs, by layer, head and pair: arrays [L, heads, P].

    Pair k is then factor x^(source) + unrotated b^(k), with x the activation and b the same before
    rotation. Every chain of interventions is of this form: so one compiled program serves all, and
    edits are arguments of it. Layers with fewer heads or pairs are filled up.
    """

    source: np.ndarray  # int
    factor: np.ndarray  # f32
    unrotated: np.ndarray  # f32


def edit(config: DecoderConfig, interventions: Intervention | Sequence[Intervention]) -> Edit:
    """What Decoder takes as `edit=`: one after the other of the interventions, as listed.

    Args:
      config: of the decoder to edit.
      interventions: one, or several.

    Raises:
      UserError: no such layer or head, a band without pairs, or an edit of keys that would change
        heads that were not named.
    """
    return apply_changes(changes(config, interventions))


def changes(
    config: DecoderConfig, interventions: Intervention | Sequence[Intervention]
) -> dict[str, Change]:
    """The same as arrays, for each of EDITABLE; arguments and errors as `edit`."""
    heads = {"q": config.heads, "k": max(_kv_heads(config))}
    total = {name: _nothing(config, heads[name.removesuffix("_rotated")]) for name in EDITABLE}
    for intervention in _as_list(interventions):
        change = _changes_of(intervention, config)
        for name in intervention.on:
            total[name] = _then(total[name], change[name.removesuffix("_rotated")])
    return total


def apply_changes(by_activation: Mapping[str, Change]) -> Edit:
    """The edit of these changes.

    A decoder shows an edit one activation at a time. What an unrotated pair needs of the
    activation before rotation is kept from there to right after rotation, which a layer always
    reaches before it begins the next: so one edit serves layers under scan, unrolled and
    rematerialised alike, and the decoder need not know.
    """
    before: dict[str, Array] = {}

    def run(name: str, layer: Array, value: Array) -> Array:
        if name not in EDITABLE:
            return value
        source = name.removesuffix("_rotated")
        earlier = before.pop(source, None) if name != source else None
        value = _apply(by_activation[name], layer, value, earlier)
        if name == source:
            before[name] = value
        return value

    return run


def _apply(change: Change, layer: Array, value: Array, earlier: Array | None) -> Array:
    """value[B, T, N, H] with the pairs of one layer changed."""
    N, P = value.shape[2], value.shape[3] // 2
    source, factor, unrotated = (jnp.asarray(a)[layer][:N, :P] for a in change)
    halves = [
        factor * jnp.take_along_axis(half, source[None, None], axis=-1)
        for half in rotary.pairs(value)
    ]
    if earlier is not None:
        halves = [
            half + unrotated * before
            for half, before in zip(halves, rotary.pairs(earlier), strict=True)
        ]
    return rotary.unpairs(*halves).astype(value.dtype)


def _nothing(config: DecoderConfig, heads: int) -> Change:
    """[L, heads, P] of pairs that stay as they are, with as many as any layer has."""
    pairs = max(config.of_layer(spec).head_dim for spec in config.layer_specs) // 2
    shape = config.layers, heads, pairs
    source = np.broadcast_to(np.arange(pairs), shape)
    return Change(source.copy(), np.ones(shape, np.float32), np.zeros(shape, np.float32))


def _kv_heads(config: DecoderConfig) -> list[int]:
    """Of every layer."""
    return [config.of_layer(spec).kv_heads for spec in config.layer_specs]


def _then(first: Change, second: Change) -> Change:
    """One change and then another. Only before rotation do pairs move, where all are rotated."""
    return Change(
        np.take_along_axis(first.source, second.source, axis=-1),
        second.factor * np.take_along_axis(first.factor, second.source, axis=-1),
        second.factor * first.unrotated + second.unrotated,
    )


def _as_list(interventions: Intervention | Sequence[Intervention]) -> list[Intervention]:
    """One or several as a list; UserError for what is none."""
    chain = list(interventions) if np.iterable(interventions) else [interventions]
    for entry in chain:
        if not isinstance(entry, Intervention):
            raise UserError(
                f"{entry!r} is no intervention; make one, such as ablate(band(fastest=0.25))",
                "interventions",
            )
    return chain


def _changes_of(intervention: Intervention, config: DecoderConfig) -> dict[str, Change]:
    """One intervention's change of queries, "q", and of keys, "k", where it has any."""
    _check_range("layers", intervention.layers, config.layers)
    _check_range("heads", intervention.heads, config.heads)
    edits_keys = any(name.startswith("k") for name in intervention.on)
    if edits_keys and any(spec.keys_from is not None for spec in config.pattern):
        raise UserError(
            f"{intervention.name}: this decoder has layers that read the keys of others, so an"
            " edit of keys would reach layers that were not named; edit queries (ablate or rescale"
            " with on='q')",
            "on",
        )
    change = _nothing(config, config.heads)
    edited = np.zeros(change.source.shape, bool)
    for layer, head in np.ndindex(edited.shape[:2]):
        if _named(layer, intervention.layers) and _named(head, intervention.heads):
            pairs = intervention.band.choose(_frequencies(config, layer), layer, head)
            edited[layer, head, pairs] = True
            change.source[layer, head, pairs] = _reordered(intervention, pairs)
    if not edited.any():
        raise UserError(f"{intervention.name}: no pair of these layers and heads is in the band")
    change.factor[edited] = 0.0 if intervention.unrotated else intervention.factor
    change.unrotated[edited] = float(intervention.unrotated)
    if not edits_keys:
        return {"q": change}
    heads = _query_head_of_keys(intervention, edited, _kv_heads(config))[..., None]
    return {"q": change, "k": Change(*(np.take_along_axis(a, heads, axis=1) for a in change))}


def _query_head_of_keys(
    intervention: Intervention, edited: np.ndarray, kv_heads: list[int]
) -> np.ndarray:
    """int[L, K]: for every key head a query head that reads it, as all of them are edited alike."""
    query_heads = np.zeros((len(edited), max(kv_heads)), int)
    for layer, K in enumerate(kv_heads):
        group = edited.shape[1] // K
        by_group = edited[layer].reshape(K, group, -1)
        for k in np.flatnonzero((by_group != by_group[:, :1]).any(axis=(1, 2)))[:1]:
            shared = ", ".join(map(str, range(k * group, (k + 1) * group)))
            raise UserError(
                f"{intervention.name}: query heads {shared} of layer {layer} share their keys, so"
                " an edit of keys changes them all: name all of them with one band, or edit"
                " on='q', which changes a head alone",
                "heads",
            )
        query_heads[layer, :K] = np.arange(K) * group
    return query_heads


def _reordered(intervention: Intervention, pairs: np.ndarray) -> np.ndarray:
    """int[m]: which of the band's pairs comes in the place of each."""
    order = intervention.order
    if order is None:
        return pairs
    if isinstance(order, str):  # "reverse"
        return pairs[::-1]
    if len(order) != len(pairs):
        raise UserError(
            f"permute: order={order} has {len(order)} places, and {intervention.band.name} is"
            f" {len(pairs)} pairs",
            "order",
        )
    return pairs[list(order)]


def _frequencies(config: DecoderConfig, layer: int) -> np.ndarray:
    """float64[P] in one layer."""
    spec = config.layer_specs[layer]
    return inverse_frequencies(spec.rotary, config.of_layer(spec).head_dim)


def _check_range(axis: str, numbers: tuple[int, ...] | None, count: int) -> None:
    for i in numbers or ():
        if not 0 <= i < count:
            raise UserError(
                f"{axis}={numbers}: {i} is not one of the decoder's 0..{count - 1}", axis
            )


def _named(i: int, numbers: tuple[int, ...] | None) -> bool:
    return numbers is None or i in numbers
