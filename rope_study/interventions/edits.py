"""Interventions: what may be done to a band of rotary pairs, before or after rotation.

P = H / 2 rotary pairs. Pair k adds q^(k)T rho(g_k)^(j-i) k^(k) to a logit, before the scale: what
an intervention does to that is said with each. `changes.edit` makes a decoder's edit of them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.interventions.bands import Band

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
      unrotated: whether they are as before rotation instead.
      order: which of the band's places comes in the place of each; "reverse" of any number.
    """

    kind: str
    band: Band
    on: tuple[str, ...]
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    factor: float = 1.0
    unrotated: bool = False
    order: tuple[int, ...] | str | None = None

    @property
    def name(self) -> str:
        """One line for tables."""
        places = [
            f"{axis} {', '.join(map(str, numbers))}"
            for axis, numbers in (("layers", self.layers), ("heads", self.heads))
            if numbers is not None
        ]
        return "; ".join([f"{self.kind} {self.band.name}", *places])


@checked
def ablate(
    band: Band,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    on: str | Sequence[str] = "q",
) -> Intervention:
    """The band is 0, and adds nothing to any logit of these heads.

    In q alone that is exact, and touches no other head. Keys are shared: ablating them takes the
    band from every query head of the group. Rotation leaves 0 as it is, so before or after makes
    no difference, but for score functions that read q or k before rotation (CoPE, DPE).

    Args:
      band: the pairs.
      layers, heads: which; all where not given. Heads are query heads.
      on: "q", "k", "q_rotated", "k_rotated", or several of them.
    """
    return _make("ablate", band, on, layers, heads, factor=0.0)


@checked
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
    return _make(f"rescale by {factor:g}", band, on, layers, heads, factor=float(factor))


@checked
def unrotate(
    band: Band,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """The band is not rotated: it adds q^(k)T k^(k) at every distance, as with frequency 0.

    That takes both q_rotated and k_rotated, and keys are shared: heads are whole groups. The
    encoding's scaling (YaRN) is left out, as for every unrotated pair.
    """
    return _make("unrotate", band, ("q_rotated", "k_rotated"), layers, heads, unrotated=True)


@checked
def permute(
    band: Band,
    *,
    order: Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Intervention:
    """Pairs of the band exchange their frequencies; what they hold stays the same.

    The pairs b_0, b_1, ... of the band are moved before rotation, in q and in k alike: what was in
    b_order[i] is rotated by the frequency of b_i. Without rotation this changes nothing. Heads are
    whole groups.

    Args:
      band: the pairs.
      order: a permutation of 0..m-1 for a band of m pairs; where not given the reverse, so that
        the fastest pair gets the slowest frequency.
      layers, heads: which; all where not given.
    """
    if order is None:
        return _make("reverse", band, ("q", "k"), layers, heads, order="reverse")
    order = tuple(map(int, order))
    if sorted(order) != list(range(len(order))):
        raise UserError(
            f"permute: order={order} must have each of 0..{len(order) - 1} once", "order"
        )
    return _make(f"permute {order}", band, ("q", "k"), layers, heads, order=order)


def _make(
    kind: str,
    band: Band,
    on: str | Sequence[str],
    layers: int | Sequence[int] | None,
    heads: int | Sequence[int] | None,
    factor: float = 1.0,
    unrotated: bool = False,
    order: tuple[int, ...] | str | None = None,
) -> Intervention:
    on = (on,) if isinstance(on, str) else tuple(on)
    for name in on or [""]:
        if name not in EDITABLE:
            raise UserError(f"{kind}: on={name!r} is not one of {', '.join(EDITABLE)}", "on")
    # Names say what is unusual only.
    usual = (("q",), ("q", "k"), ("q_rotated", "k_rotated"))
    return Intervention(
        kind if on in usual else f"{kind} {on}",
        band,
        on,
        _numbers("layers", layers),
        _numbers("heads", heads),
        factor,
        unrotated,
        order,
    )


def _numbers(axis: str, numbers: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    several = sorted(set(np.atleast_1d(numbers).tolist()))
    if not several:
        raise UserError(f"{axis}={numbers!r} names none", axis)
    return tuple(several)
