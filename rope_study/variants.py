"""Variants of a decoder by name: "nope + alibi()" is one encoding and one logit function.

A variant is terms joined by " + ": a layer pattern, an encoding (in all layers), a QK-norm, a query
scale, a logit function; at most one of each, and what a term does not name stays as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from rope_study import encodings, rotary
from rope_study.architecture import DecoderConfig, LayerSpec
from rope_study.errors import UserError, nearest
from rope_study.logits import LOGITS
from rope_study.norm import QK_NORMS
from rope_study.patterns import PATTERNS
from rope_study.query import QUERY_SCALES
from rope_study.spelling import call

# What each term sets: a field of LayerSpec in all layers, or the pattern itself.
TABLES: dict[str, dict[str, Callable[..., Any]]] = {
    "pattern": PATTERNS,
    "rotary": encodings.ENCODINGS,
    "qk_norm": QK_NORMS,
    "query_scale": QUERY_SCALES,
    "logits": LOGITS,
}
PARTS = ("qk_norm", "query_scale", "logits")
NONE = "none"
WHERE = "set config.encodings or config.model"


def apply(config: DecoderConfig, variant: str | rotary.Rotary) -> tuple[str, DecoderConfig]:
    """The name of a variant, in canonical spelling, and the decoder changed by it.

    Args:
      config: the decoder to change.
      variant: such as "rope", "nope + alibi()" or "gemma3(window=64) + ss_max()"; or an encoding.

    Raises:
      UserError: an unknown term (the nearest is suggested), wrong arguments, or two terms for the
        same thing.
    """
    if not isinstance(variant, str):
        return encodings.name_of(variant), config.with_rotary(variant)
    terms = _terms(variant)
    for field in TABLES:  # the pattern first: the others change its layers
        if field in terms:
            config = _set(config, field, terms[field][1])
    return _terms_name(terms), config


def _terms_name(terms: dict[str, tuple[str, Any]]) -> str:
    return " + ".join(terms[field][0] for field in TABLES if field in terms)


def _terms(variant: str) -> dict[str, tuple[str, Any]]:
    """For every field that the variant sets its canonical name and value."""
    terms: dict[str, tuple[str, Any]] = {}
    for term in map(str.strip, variant.split(" + ")):
        field, name, value = _parse(term)
        if field in terms:
            raise UserError(
                f"{variant!r} has two terms for {field}: {terms[field][0]} and {name}; {WHERE}"
            )
        terms[field] = name, value
    return terms


def _parse(term: str) -> tuple[str, str, Any]:
    """Which field a term sets, its canonical name and its value."""
    if ":" in term.split("(")[0]:
        function = encodings.parse(term)
        return "rotary", encodings.name_of(function), function
    name = term.split("(")[0].strip()
    for field, table in TABLES.items():
        if name in table:
            value = call(term, table, field, WHERE)
            return field, _name(field, term, value), value
    known = [name for table in TABLES.values() for name in table]
    raise UserError(
        f"unknown encoding {name!r}.{nearest(name, known)} Known: {', '.join(known)}; {WHERE}"
    )


def _name(field: str, term: str, value: Any) -> str:
    if field == "pattern":
        return term  # it has no name of its own
    return encodings.name_of(value) if field == "rotary" else value.name


def _set(config: DecoderConfig, field: str, value: Any) -> DecoderConfig:
    if field == "pattern":
        return dataclasses.replace(config, pattern=value)
    return config.with_layers(**{field: value})


def part(field: str, spelling: str | None) -> Any:
    """What a setting of config.model names; None for "none".

    Args:
      field: of TABLES.
      spelling: such as "alibi()".
    """
    if spelling in (None, NONE):
        return None
    return call(spelling, TABLES[field], field.replace("_", " "), f"set config.model.{field}")


def name(variant: str | rotary.Rotary) -> str:
    """The canonical name of a variant."""
    return _terms_name(_terms(variant)) if isinstance(variant, str) else encodings.name_of(variant)


def sets_rotary(variant: str | rotary.Rotary) -> bool:
    """Whether the variant names an encoding of its own, by itself or by a pattern."""
    return not isinstance(variant, str) or bool({"pattern", "rotary"} & _terms(variant).keys())


def name_of(spec: LayerSpec) -> str:
    """One layer's encoding and parts."""
    return " + ".join([encodings.name_of(spec.rotary), *(part.name for part in spec.parts)])
