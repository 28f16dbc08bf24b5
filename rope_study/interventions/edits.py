"""Interventions: edits of q and k, before or after rotation, in a band of rotary pairs.

B batch, T tokens, N query heads, K key heads, G = N / K query heads that share their keys,
P = H / 2 rotary pairs, L layers. Pair k adds q^(k)T rho(g_k)^(j-i) k^(k) to a logit, before the
scale: what an edit does to that is said with each.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rope_study import rotary
from rope_study.architecture import DecoderConfig
from rope_study.decoder import Edit
from rope_study.errors import UserError
from rope_study.interventions.bands import Band
from rope_study.probes.axes import inverse_frequencies
from rope_study.spelling import check_numbers

Array = jax.Array

EDITABLE = ("q", "k", "q_rotated", "k_rotated")

# (one member of all pairs [B, T, N, P], the same before rotation, int[N, P] the pair to come in
# the place of each) -> what it becomes in the band.
Change = Callable[[Array, Array | None, Array], Array]


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One edit of a band, for chosen layers and heads; `zero` and the others make it.

    Attributes:
      kind: what it does, for names.
      band: the pairs.
      on: the activations it changes, of EDITABLE.
      layers, heads: query heads, whatever `on` names; None is all.
      change: what becomes of the pairs.
      order: what permute puts where, places in the band; None is the reverse.
    """

    kind: str
    band: Band
    on: tuple[str, ...]
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    change: Change = dataclasses.field(repr=False)
    order: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """One line for tables."""
        where = [
            f"{what} {', '.join(map(str, some))}"
            for what, some in (("layers", self.layers), ("heads", self.heads))
            if some is not None
        ]
        return "; ".join([f"{self.kind} {self.band.name}", *where])


def zero(
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
    return _make("zero", band, on, layers, heads, lambda x, before, source: jnp.zeros_like(x))


def rescale(
    band: Band,
    factor: float,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    on: str | Sequence[str] = "q",
) -> Intervention:
    """The band is multiplied by a factor, and so is what it adds to logits; arguments as `zero`.

    On both q and k it is the square of the factor.
    """
    check_numbers("rescale", factor=factor)
    if not np.isfinite(factor):
        raise UserError(f"rescale: factor={factor} must be finite")
    kind = f"rescale by {factor:g}"
    return _make(kind, band, on, layers, heads, lambda x, before, source: x * factor)


def freeze(
    band: Band,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """The band does not turn: it adds q^(k)T k^(k) at every distance, as with frequency 0.

    Both q_rotated and k_rotated must stand still, and keys are shared: heads are whole groups. An
    attention factor (YaRN) is left out, as for every pair that stands still.
    """
    on = ("q_rotated", "k_rotated")
    return _make("freeze", band, on, layers, heads, lambda x, before, source: before)


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
    take = lambda x, before, source: jnp.take_along_axis(x, source[None, None], axis=-1)  # noqa: E731
    kind = "reverse" if order is None else f"permute {tuple(order)}"
    made = _make(kind, band, ("q", "k"), layers, heads, take)
    if order is None:
        return made
    order = tuple(int(i) for i in order)
    if sorted(order) != list(range(len(order))):
        raise UserError(f"permute: order={order} must have each of 0..{len(order) - 1} once")
    return dataclasses.replace(made, order=order)


def _make(
    kind: str,
    band: Band,
    on: str | Sequence[str],
    layers: int | Sequence[int] | None,
    heads: int | Sequence[int] | None,
    change: Change,
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
        shown, band, on, _numbers("layers", layers), _numbers("heads", heads), change
    )


def _numbers(what: str, some: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if some is None:
        return None
    found = np.atleast_1d(some)
    if found.dtype.kind != "i" or not found.size or found.ndim > 1:
        raise UserError(f"{what}={some!r} must be a whole number or several")
    return tuple(sorted(set(found.tolist())))


# --- interventions as an edit -----------------------------------------------------------------


def edit(config: DecoderConfig, interventions: Intervention | Sequence[Intervention]) -> Edit:
    """What Decoder takes as `edit=`: one after the other of the interventions, as listed.

    A decoder shows an edit one activation at a time. What `freeze` needs of the activation before
    rotation is kept from there to right after rotation, which a layer always reaches before it
    begins the next: so one edit serves layers under scan, unrolled and rematerialised alike, and
    the decoder need not know.

    Args:
      config: of the decoder to edit.
      interventions: one, or several.

    Raises:
      UserError: no such layer or head, a band without pairs, or an edit of keys that would change
        heads that were not named.
    """
    chain = as_list(interventions)
    tables = [_tables(one, config) for one in chain]
    before: dict[str, Array] = {}

    def run(name: str, layer: Array, value: Array) -> Array:
        if name not in EDITABLE:
            return value
        source = name.removesuffix("_rotated")
        earlier = before.pop(source, None) if name != source else None
        for one, table in zip(chain, tables, strict=True):
            if name in one.on:
                value = _apply(one.change, value, earlier, table[source], layer)
        if name == source:
            before[name] = value
        return value

    return run


def as_list(interventions: Intervention | Sequence[Intervention]) -> list[Intervention]:
    """One or several as a list; UserError for what is none."""
    one = isinstance(interventions, Intervention)
    chain = [interventions] if one else list(interventions)
    for entry in chain:
        if not isinstance(entry, Intervention):
            raise UserError(
                f"{entry!r} is no intervention; make one, such as zero(band(fastest=0.25))"
            )
    return chain


def _apply(
    change: Change, value: Array, earlier: Array | None, table: tuple, layer: Array
) -> Array:
    """value[B, T, N, H] with the band of one layer changed."""
    N, P = value.shape[2], value.shape[3] // 2
    mask, source = (jnp.asarray(a)[layer][:N, :P] for a in table)
    halves = rotary.pairs(value)
    olds = (None, None) if earlier is None else rotary.pairs(earlier)
    changed = [
        jnp.where(mask, change(half, old, source), half)
        for half, old in zip(halves, olds, strict=True)
    ]
    return rotary.unpairs(*changed).astype(value.dtype)


# Whether a pair is in the band, bool[L, heads, P], and what permute puts there, int[L, heads, P].
_Table = tuple[np.ndarray, np.ndarray]


def _tables(one: Intervention, config: DecoderConfig) -> dict[str, _Table]:
    """A table for queries and one for keys; layers with fewer heads or pairs are filled up."""
    _check_range("layers", one.layers, config.layers)
    _check_range("heads", one.heads, config.heads)
    of_keys = any(name.startswith("k") for name in one.on)
    if of_keys and any(spec.keys_from is not None for spec in config.pattern):
        raise UserError(
            f"{one.name}: this decoder has layers that read the keys of others, so an edit of keys"
            " would reach layers that were not named; edit queries (zero or rescale with on='q')"
        )
    layers = [config.of_layer(spec) for spec in config.layer_specs]
    pairs = max(c.head_dim for c in layers) // 2
    mask = np.zeros((config.layers, config.heads, pairs), bool)
    source = np.broadcast_to(np.arange(pairs), mask.shape).copy()
    for layer, head in np.ndindex(mask.shape[:2]):
        if _named(layer, one.layers) and _named(head, one.heads):
            chosen = one.band.choose(_frequencies(config, layer), layer, head)
            mask[layer, head, chosen] = True
            source[layer, head, chosen] = _reordered(one, chosen)
    if not mask.any():
        raise UserError(f"{one.name}: no pair of these layers and heads is in the band")
    tables = {"q": (mask, source)}
    if of_keys:
        tables["k"] = _of_keys(one, mask, source, [c.kv_heads for c in layers])
    return tables


def _of_keys(
    one: Intervention, mask: np.ndarray, source: np.ndarray, kv_heads: list[int]
) -> _Table:
    """The table by key head, where all query heads that share one are edited alike."""
    shape = len(mask), max(kv_heads), mask.shape[2]
    of_keys, sources = np.zeros(shape, bool), np.zeros(shape, int)
    for layer, K in enumerate(kv_heads):
        group = mask.shape[1] // K
        by_group = mask[layer].reshape(K, group, -1)
        for k in np.flatnonzero((by_group != by_group[:, :1]).any(axis=(1, 2)))[:1]:
            shared = ", ".join(map(str, range(k * group, (k + 1) * group)))
            raise UserError(
                f"{one.name}: query heads {shared} of layer {layer} share their keys, so an edit"
                " of keys changes them all: name all of them with one band, or edit on='q', which"
                " changes a head alone"
            )
        of_keys[layer, :K], sources[layer, :K] = by_group[:, 0], source[layer, ::group]
    return of_keys, sources


def _reordered(one: Intervention, chosen: np.ndarray) -> np.ndarray:
    if one.order is None:
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
