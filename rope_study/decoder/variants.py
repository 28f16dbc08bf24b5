"""Variants of a decoder by name: "nope + alibi()" is one encoding and one score function.

A variant is terms joined by " + ": a layer pattern, an encoding (in all layers), a QK-norm, a query
scale, a score function; at most one of each, and what a term does not name stays as it is.
"""

import dataclasses
from typing import Any, NamedTuple

from rope_study import rotary
from rope_study.decoder import dpe  # noqa: F401, so that it is registered
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS
from rope_study.decoder.config import DecoderConfig, LayerSpec
from rope_study.decoder.layer_patterns import PATTERNS
from rope_study.decoder.norms import QK_NORMS
from rope_study.decoder.query_scaling import QUERY_SCALES
from rope_study.errors import UserError, nearest
from rope_study.registry import Registry
from rope_study.rotary.registry import is_import

# What each term sets: a field of LayerSpec in all layers, or the pattern itself. The pattern comes
# first, as the others change its layers.
REGISTRIES: dict[str, Registry] = {
    "pattern": PATTERNS,
    "rotary": rotary.ENCODINGS,
    "qk_norm": QK_NORMS,
    "query_scale": QUERY_SCALES,
    "score_function": SCORE_FUNCTIONS,
}
COMPONENTS = ("qk_norm", "query_scale", "score_function")


class _Term(NamedTuple):
    name: str  # canonical
    value: Any


def apply(
    config: DecoderConfig, variant: str | rotary.Rotary, argument: str | None = None
) -> tuple[str, DecoderConfig]:
    """The canonical name of a variant, and the decoder changed by it.

    Args:
      config: the decoder to change.
      variant: such as "rope", "nope + alibi()" or "gemma3(window=64) + ss_max()"; or an encoding.
      argument: what the variant was passed as, for errors.

    Raises:
      UserError: an unknown term (the nearest is suggested), wrong arguments, or two terms for the
        same thing.
    """
    if isinstance(variant, str):
        terms = _read(variant, argument)
    else:
        terms = {"rotary": _Term(rotary.name_of(variant), variant)}
    name = " + ".join(terms[field].name for field in REGISTRIES if field in terms)
    try:
        return name, change(config, {field: term.value for field, term in terms.items()})
    except UserError as error:
        if error.argument != "rotary":
            raise
        raise UserError(error.problem, argument or "rotary", error.remedy) from error


def change(config: DecoderConfig, values: dict[str, Any]) -> DecoderConfig:
    """The decoder with these fields in all of its layers, after a "pattern" among them."""
    layers = dict(values)
    if "pattern" in layers:
        config = dataclasses.replace(config, pattern=layers.pop("pattern"))
    return config.with_layers(**layers)


def sets_rotary(variant: str | rotary.Rotary) -> bool:
    """Whether the variant names an encoding of its own, by itself or by a pattern."""
    return not isinstance(variant, str) or bool({"pattern", "rotary"} & _read(variant).keys())


def name_of(spec: LayerSpec) -> str:
    """One layer's encoding and components."""
    names = [component.name for component in spec.components]
    return " + ".join([rotary.name_of(spec.rotary), *names])


def _read(variant: str, argument: str | None = None) -> dict[str, _Term]:
    """By field what the variant sets."""
    terms: dict[str, _Term] = {}
    for text in map(str.strip, variant.split(" + ")):
        field, term = _read_term(text, argument)
        if field in terms:
            raise UserError(
                f"{variant!r} has two terms for {field}: {terms[field].name} and {term.name}",
                argument,
            )
        terms[field] = term
    return terms


def _read_term(text: str, argument: str | None) -> tuple[str, _Term]:
    if is_import(text):
        encoding = rotary.parse(text, argument)
        return "rotary", _Term(rotary.name_of(encoding), encoding)
    name = text.partition("(")[0].strip()
    for field, registry in REGISTRIES.items():
        if name in registry:
            value = registry.make(text, argument)
            # A pattern is layers, which have no name of their own.
            canonical = registry.canonical(text) if field == "pattern" else value.name
            return field, _Term(canonical, value)
    known = [name for registry in REGISTRIES.values() for name in registry]
    raise UserError(
        f"unknown encoding {name!r}.{nearest(name, known)} Known: {', '.join(known)}", argument
    )


def describe(config: DecoderConfig) -> str:
    """One line that names a decoder, for titles."""
    names = dict.fromkeys(name_of(spec) for spec in config.pattern)
    return f"{describe_size(config)}, {' / '.join(names)}"


def describe_size(config: DecoderConfig) -> str:
    """The same without its encodings."""
    size = f"{config.layers} layers x {config.d_model}"
    return size if config.source is None else f"{config.source}, {size}"
