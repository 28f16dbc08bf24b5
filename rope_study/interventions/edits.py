"""Interventions: edits of q and k, before or after rotation, in a band of rotary pairs.

B batch, T tokens, N query heads, K key heads, G = N / K query heads that share their keys,
P = H / 2 rotary pairs, L layers. Pair k adds q^(k)T rho(g_k)^(j-i) k^(k) to a logit, before the
scale: what an edit does to that is said with each.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rope_study import rotary
from rope_study.decoder import DecoderConfig, Edit
from rope_study.errors import UserError
from rope_study.interventions.bands import Band
from rope_study.probes.datasets import inverse_frequencies
from rope_study.registry import check_numbers

Array = jax.Array

EDITABLE = ("q", "k", "q_rotated", "k_rotated")


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One edit of a band, for chosen layers and heads; `ablate` and the others make it.

    Attributes:
      kind: what it does, for names.
      band: the pairs.
      on: the activations it changes, of EDITABLE.
      layers, heads: query heads, whatever `on` names; None is all.
      factor: what the pairs are multiplied by.
      frozen: whether they are as before rotation instead.
      order: which of the band's places comes in the place of each; "reverse" of any number.
    """

    kind: str
    band: Band
    on: tuple[str, ...]
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    factor: float = 1.0
    frozen: bool = False
    order: tuple[int, ...] | str | None = None

    @property
    def name(self) -> str:
        """One line for tables."""
        where = [
            f"{what} {', '.join(map(str, some))}"
            for what, some in (("layers", self.layers), ("heads", self.heads))
            if some is not None
        ]
        return "; ".join([f"{self.kind} {self.band.name}", *where])


def ablate(
    band: Band,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    on: str | Sequence[str] = "q",
) -> Intervention:
    """The band is 0, and adds nothing to any logit of these heads.

    In q alone that is exact, and touches no other head. Keys are shared: zeroing them takes the
    band from every query head of the group. Rotation leaves 0 as it is, so before or after makes
    no difference, but for logit functions that read q or k before rotation (CoPE, DPE).

    Args:
      band: the pairs.
      layers, heads: which; all where not given. Heads are query heads.
      on: "q", "k", "q_rotated", "k_rotated", or several of them.
    """
    return _make("ablate", band, on, layers, heads, factor=0.0)


def rescale(
    band: Band,
    factor: float,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    on: str | Sequence[str] = "q",
) -> Intervention:
    """The band is multiplied by a factor, and so is what it adds to logits; arguments as `ablate`.

    On both q and k it is the square of the factor.
    """
    check_numbers("rescale", factor=factor)
    if not np.isfinite(factor):
        raise UserError(f"rescale: factor={factor} must be finite")
    return _make(f"rescale by {factor:g}", band, on, layers, heads, factor=float(factor))


def unrotate(
    band: Band,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """The band does not turn: it adds q^(k)T k^(k) at every distance, as with frequency 0.

    Both q_rotated and k_rotated must stand still, and keys are shared: heads are whole groups. An
    attention factor (YaRN) is left out, as for every pair that stands still.
    """
    return _make("unrotate", band, ("q_rotated", "k_rotated"), layers, heads, frozen=True)


def permute(
    band: Band,
    *,
    order: Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Pairs of the band exchange their frequencies; what they hold stays the same.

    The pairs b_0, b_1, ... of the band are moved before rotation, in q and in k alike: place b_i
    turns what was in b_order[i]. Without rotation this changes nothing. Heads are whole groups.

    Args:
      band: the pairs.
      order: a permutation of 0..m-1 for a band of m pairs; where not given the reverse, so that
        the fastest pair gets the slowest frequency.
      layers, heads: which; all where not given.
    """
    if order is None:
        return _make("reverse", band, ("q", "k"), layers, heads, order="reverse")
    order = tuple(int(i) for i in order)
    if sorted(order) != list(range(len(order))):
        raise UserError(f"permute: order={order} must have each of 0..{len(order) - 1} once")
    return _make(f"permute {order}", band, ("q", "k"), layers, heads, order=order)


def _make(
    kind: str,
    band: Band,
    on: str | Sequence[str],
    layers: int | Sequence[int] | None,
    heads: int | Sequence[int] | None,
    **change: float | bool | tuple | str,
) -> Intervention:
    if not isinstance(band, Band):
        raise UserError(f"{kind}: {band!r} is no band; make one, such as band(fastest=0.25)")
    on = (on,) if isinstance(on, str) else tuple(on)
    for name in on:
        if name not in EDITABLE:
            raise UserError(f"{kind}: on={name!r} is not one of {', '.join(EDITABLE)}")
    # The names say what is unusual only.
    shown = kind if on in (("q",), ("q", "k"), ("q_rotated", "k_rotated")) else f"{kind} {on}"
    return Intervention(
        shown, band, on, _numbers("layers", layers), _numbers("heads", heads), **change
    )


def _numbers(what: str, some: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if some is None:
        return None
    found = np.atleast_1d(some)
    if found.dtype.kind != "i" or not found.size or found.ndim > 1:
        raise UserError(f"{what}={some!r} must be a whole number or several")
    return tuple(sorted(set(found.tolist())))


# --- interventions as an edit -----------------------------------------------------------------


class Change(NamedTuple):
    """What becomes of one activation's pairs, by layer, head and pair: arrays [L, heads, P].

    Pair k is then factor x^(source) + frozen b^(k), with x the activation and b the same before
    rotation. Every chain of interventions is of this form: so one compiled program serves all, and
    edits are arguments of it. Layers with fewer heads or pairs are filled up.
    """

    source: np.ndarray  # int
    factor: np.ndarray  # f32
    frozen: np.ndarray  # f32


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
    found = {name: _nothing(config, heads[name.removesuffix("_rotated")]) for name in EDITABLE}
    for one in _as_list(interventions):
        change = _changes_of(one, config)
        for name in one.on:
            found[name] = _then(found[name], change[name.removesuffix("_rotated")])
    return found


def apply_changes(found: Mapping[str, Change]) -> Edit:
    """The edit of these changes.

    A decoder shows an edit one activation at a time. What a frozen pair needs of the activation
    before rotation is kept from there to right after rotation, which a layer always reaches before
    it begins the next: so one edit serves layers under scan, unrolled and rematerialised alike,
    and the decoder need not know.
    """
    before: dict[str, Array] = {}

    def run(name: str, layer: Array, value: Array) -> Array:
        if name not in EDITABLE:
            return value
        source = name.removesuffix("_rotated")
        earlier = before.pop(source, None) if name != source else None
        value = _apply(found[name], layer, value, earlier)
        if name == source:
            before[name] = value
        return value

    return run


def _apply(change: Change, layer: Array, value: Array, earlier: Array | None) -> Array:
    """value[B, T, N, H] with the pairs of one layer changed."""
    N, P = value.shape[2], value.shape[3] // 2
    source, factor, frozen = (jnp.asarray(a)[layer][:N, :P] for a in change)
    halves = [
        factor * jnp.take_along_axis(half, source[None, None], axis=-1)
        for half in rotary.pairs(value)
    ]
    if earlier is not None:
        halves = [
            half + frozen * old for half, old in zip(halves, rotary.pairs(earlier), strict=True)
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
    """One change and then another. Only before rotation do pairs move, where none is frozen."""
    return Change(
        np.take_along_axis(first.source, second.source, axis=-1),
        second.factor * np.take_along_axis(first.factor, second.source, axis=-1),
        second.factor * first.frozen + second.frozen,
    )


def _as_list(interventions: Intervention | Sequence[Intervention]) -> list[Intervention]:
    """One or several as a list; UserError for what is none."""
    one = isinstance(interventions, Intervention)
    chain = [interventions] if one else list(interventions)
    for entry in chain:
        if not isinstance(entry, Intervention):
            raise UserError(
                f"{entry!r} is no intervention; make one, such as ablate(band(fastest=0.25))"
            )
    return chain


def _changes_of(one: Intervention, config: DecoderConfig) -> dict[str, Change]:
    """One intervention's change of queries, "q", and of keys, "k", where it has any."""
    _check_range("layers", one.layers, config.layers)
    _check_range("heads", one.heads, config.heads)
    of_keys = any(name.startswith("k") for name in one.on)
    if of_keys and any(spec.keys_from is not None for spec in config.pattern):
        raise UserError(
            f"{one.name}: this decoder has layers that read the keys of others, so an edit of keys"
            " would reach layers that were not named; edit queries (zero or rescale with on='q')"
        )
    change = _nothing(config, config.heads)
    edited = np.zeros(change.source.shape, bool)
    for layer, head in np.ndindex(edited.shape[:2]):
        if _named(layer, one.layers) and _named(head, one.heads):
            chosen = one.band.choose(_frequencies(config, layer), layer, head)
            edited[layer, head, chosen] = True
            change.source[layer, head, chosen] = _reordered(one, chosen)
    if not edited.any():
        raise UserError(f"{one.name}: no pair of these layers and heads is in the band")
    change.factor[edited] = 0.0 if one.frozen else one.factor
    change.frozen[edited] = float(one.frozen)
    if not of_keys:
        return {"q": change}
    heads = _query_head_of_keys(one, edited, _kv_heads(config))[..., None]
    return {"q": change, "k": Change(*(np.take_along_axis(a, heads, axis=1) for a in change))}


def _query_head_of_keys(one: Intervention, edited: np.ndarray, kv_heads: list[int]) -> np.ndarray:
    """int[L, K]: for every key head a query head that reads it, as all of them are edited alike."""
    found = np.zeros((len(edited), max(kv_heads)), int)
    for layer, K in enumerate(kv_heads):
        group = edited.shape[1] // K
        by_group = edited[layer].reshape(K, group, -1)
        for k in np.flatnonzero((by_group != by_group[:, :1]).any(axis=(1, 2)))[:1]:
            shared = ", ".join(map(str, range(k * group, (k + 1) * group)))
            raise UserError(
                f"{one.name}: query heads {shared} of layer {layer} share their keys, so an edit"
                " of keys changes them all: name all of them with one band, or edit on='q', which"
                " changes a head alone"
            )
        found[layer, :K] = np.arange(K) * group
    return found


def _reordered(one: Intervention, chosen: np.ndarray) -> np.ndarray:
    if one.order is None:
        return chosen
    if one.order == "reverse":
        return chosen[::-1]
    if len(one.order) != len(chosen):
        raise UserError(
            f"permute: order={one.order} has {len(one.order)} places, and {one.band.name} is"
            f" {len(chosen)} pairs"
        )
    return chosen[list(one.order)]


def _frequencies(config: DecoderConfig, layer: int) -> np.ndarray:
    """float64[P] in one layer."""
    spec = config.layer_specs[layer]
    return inverse_frequencies(spec.rotary, config.of_layer(spec).head_dim)


def _check_range(what: str, some: tuple[int, ...] | None, count: int) -> None:
    for i in some or ():
        if not 0 <= i < count:
            raise UserError(f"{what}={some}: {i} is not one of the decoder's 0..{count - 1}")


def _named(i: int, some: tuple[int, ...] | None) -> bool:
    return some is None or i in some
