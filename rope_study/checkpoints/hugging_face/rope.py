"""Transformers' rope parameters as encodings, and encodings as rope parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from rope_study import rotary
from rope_study.errors import UserError, nearest

Fields = Mapping[str, Any]
SLIDING, FULL = "sliding_attention", "full_attention"

# --- in ---------------------------------------------------------------------------------------


def rope_parameters(fields: Fields, layer_type: str) -> dict[str, Any]:
    """The rope settings of one type of layer, from files of today and of before.

    Today's have rope_parameters, for all layers or by type; before there were rope_theta,
    rope_scaling and, in Gemma 3, rope_local_base_freq.
    """
    parameters = fields.get("rope_parameters")
    if parameters is not None and {SLIDING, FULL} & parameters.keys():
        parameters = parameters.get(layer_type)
    by_type = "rope_local_base_freq" in fields
    by_type |= fields.get("model_type") in ("gemma3_text", "gemma4_text")
    local = by_type and layer_type == SLIDING
    if parameters is None:
        scaling = fields.get("rope_scaling")
        parameters = {} if scaling is None or local else dict(scaling)
        if fields.get("model_type") == "gemma4_text" and not local:
            proportional = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
            parameters = proportional | parameters
    if local:
        theta = fields.get("rope_local_base_freq", 1e4)
    else:
        theta = fields.get("rope_theta", 1e6 if by_type else 1e4)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return {"rope_theta": theta} | parameters | {"rope_type": kind}


def encoding(parameters: Fields, longest: int, file: str) -> rotary.Encoding:
    """The encoding of Transformers' rope parameters.

    "dynamic" and "longrope" depend on the length that is run: here it is the trained one.

    Args:
      parameters: as `rope_parameters` gives them.
      longest: max_position_embeddings, tokens; the trained length where the parameters have none.
      file: names the file in errors.

    Raises:
      UserError: an unknown rope type, or one that lacks a parameter.
    """
    kind = parameters["rope_type"]
    if kind not in ROPE_TYPES:
        raise UserError(
            f"{file}: rope type {kind!r} is not supported.{nearest(str(kind), ROPE_TYPES)}"
            f" Supported: {', '.join(ROPE_TYPES)}"
        )
    try:
        return ROPE_TYPES[kind](parameters, longest)
    except KeyError as error:
        raise UserError(f"{file}: rope type {kind!r} lacks the parameter {error}") from None


def _trained(p: Fields, longest: int) -> int:
    return p.get("original_max_position_embeddings", longest)


def _partial(p: Fields) -> float:
    return p.get("partial_rotary_factor", 1.0)


def _default(p: Fields, longest: int) -> rotary.Encoding:
    return rotary.rope(p["rope_theta"])


def _linear(p: Fields, longest: int) -> rotary.Encoding:
    return rotary.linear_rope(p["factor"], p["rope_theta"], _partial(p))


def _dynamic(p: Fields, longest: int) -> rotary.Encoding:
    context = _trained(p, longest)
    return rotary.dynamic_ntk_rope(p["factor"], context, context, p["rope_theta"], _partial(p))


def _proportional(p: Fields, longest: int) -> rotary.Encoding:
    return rotary.p_rope(_partial(p), p["rope_theta"], p.get("factor", 1.0))


def _yarn(p: Fields, longest: int) -> rotary.Encoding:
    names = ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor")
    optional = {name: p[name] for name in names if p.get(name) is not None}
    context = _trained(p, longest)
    factor = p.get("factor") or longest / context
    return rotary.yarn_rope(factor, context, p["rope_theta"], partial=_partial(p), **optional)


def _longrope(p: Fields, longest: int) -> rotary.Encoding:
    context = _trained(p, longest)
    factor = p.get("factor") or longest / context
    return rotary.longrope(
        tuple(p["short_factor"]), tuple(p["long_factor"]), context, context, factor,
        p["rope_theta"], attention_factor=p.get("attention_factor"), partial=_partial(p),
    )  # fmt: skip


def _llama3(p: Fields, longest: int) -> rotary.Encoding:
    return rotary.llama3_rope(
        p["factor"], p["original_max_position_embeddings"], p["rope_theta"], p["low_freq_factor"],
        p["high_freq_factor"],
    )  # fmt: skip


ROPE_TYPES: dict[str, Callable[[Fields, int], rotary.Encoding]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}

# --- out --------------------------------------------------------------------------------------


def parameters_of(encoding: rotary.Rotary) -> dict[str, Any]:
    """Transformers' rope parameters of an encoding.

    Raises:
      UserError: Transformers has no such rope type.
    """
    match encoding:
        case rotary.Rope():
            parameters: dict[str, Any] = {"rope_type": "default"}
        case rotary.Nope():
            parameters = {"rope_type": "proportional", "partial_rotary_factor": 0.0}
        case rotary.PRope():
            parameters = {"rope_type": "proportional", "partial_rotary_factor": encoding.p}
            parameters |= {"factor": encoding.factor} if encoding.factor else {}
        case rotary.LinearRope():
            parameters = {"rope_type": "linear", "factor": encoding.factor}
        case rotary.DynamicNtkRope():
            parameters = {"rope_type": "dynamic", "factor": encoding.factor}
        case rotary.YarnRope():
            names = ("factor", "beta_fast", "beta_slow", "truncate")
            names += ("mscale", "mscale_all_dim", "attention_factor")
            parameters = {"rope_type": "yarn"} | _given(encoding, names)
        case rotary.Llama3Rope():
            names = ("factor", "low_freq_factor", "high_freq_factor")
            parameters = {"rope_type": "llama3"} | _given(encoding, names)
        case _:
            raise UserError(f"{rotary.name_of(encoding)} is no rope type of Transformers")
    if hasattr(encoding, "context"):
        parameters["original_max_position_embeddings"] = whole(encoding.context)
    if getattr(encoding, "partial", 1.0) != 1:
        parameters["partial_rotary_factor"] = encoding.partial
    return parameters | {"rope_theta": float(getattr(encoding, "theta", 10_000.0))}


def _given(encoding: rotary.Encoding, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of these names that are not left out."""
    return {
        name: value
        for name, value in encoding.arguments().items()
        if name in names and value is not None
    }


def whole(value: float) -> float | int:
    """An integer where it is one but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-6 * abs(value) else value
