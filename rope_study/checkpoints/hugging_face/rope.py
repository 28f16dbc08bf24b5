"""Transformers' rope parameters as encodings, and encodings as rope parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from rope_study import rotary
from rope_study.checkpoints.hugging_face.fields import Fields, is_number
from rope_study.errors import UserError, nearest

SLIDING, FULL = "sliding_attention", "full_attention"

# --- in ---------------------------------------------------------------------------------------


def rope_parameters(kind: str, fields: Fields, layer_type: str, file: str) -> dict[str, Any]:
    """The rope settings of one type of layer, from files of today and of before.

    Today's have rope_parameters, for all layers or, in Gemma 3 and 4, by type; before there were
    rope_theta, rope_scaling and, in Gemma 3, rope_local_base_freq. As in Transformers, a base in
    rope_parameters comes before one at the top of the file.

    Args:
      kind: of FAMILIES.
      fields: as fields.complete gives them.

    Raises:
      UserError: the two spellings say different things, or one is laid out for another family.
    """
    by_type = kind in ("gemma3_text", "gemma4_text")
    parameters = _given_parameters(kind, fields, layer_type if by_type else None, file)
    if kind != "gemma4_text":
        local = by_type and layer_type == SLIDING
        key, default = ("rope_local_base_freq", 1e4) if local else ("rope_theta", 1e6)
        theta = fields.get(key, default if by_type else 1e4)
        parameters = {"rope_theta": theta} | parameters
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    parameters = parameters | {"rope_type": rope_type}
    if rope_type in TRAINED_LENGTH:
        at_top = None if by_type else fields.get("original_max_position_embeddings")
        given = parameters.get("original_max_position_embeddings")
        trained = at_top or given or fields["max_position_embeddings"]
        parameters["original_max_position_embeddings"] = trained
    if not by_type and fields.get("partial_rotary_factor") is not None:
        parameters = {"partial_rotary_factor": fields["partial_rotary_factor"]} | parameters
    return parameters


def _given_parameters(
    kind: str, fields: Fields, layer_type: str | None, file: str
) -> dict[str, Any]:
    """What the file says, under either name; of one type of layer where the family has types."""
    scaling = fields.get("rope_scaling") or {}
    given = fields.get("rope_parameters") or {}
    nested = bool({SLIDING, FULL} & given.keys())
    if given and nested != (layer_type is not None):
        form = "" if layer_type is not None else "not "
        raise UserError(
            f"{file}: rope_parameters={given!r:.60} of {kind} must {form}be by type of layer,"
            f" {SLIDING} and {FULL}"
        )
    if layer_type is not None:
        given = given.get(layer_type) or {}
        scaling = scaling if layer_type == FULL else {}
        if kind == "gemma4_text" and not fields.get("rope_parameters"):
            given = GEMMA4_ROPE[layer_type]
    if not isinstance(given, dict):
        raise UserError(f"{file}: rope_parameters.{layer_type}={given!r:.60} must be an object")
    if given and not _spelled(scaling).items() <= _spelled(given).items():
        raise UserError(
            f"{file}: rope_scaling={scaling!r} and rope_parameters={given!r} say different things:"
            " put all of it into rope_parameters, and remove rope_scaling"
        )
    return dict(given or scaling)


def _spelled(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Without nulls and with today's "rope_type", as text, so that all can be compared."""
    renamed = {"rope_type" if key == "type" else key: v for key, v in parameters.items()}
    return {
        key: repr(float(value) if is_number(value) else value)
        for key, value in renamed.items()
        if value is not None
    }


GEMMA4_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}

# Rope types that Transformers completes with a trained length: from the top of the file, else
# from rope_parameters, else max_position_embeddings.
TRAINED_LENGTH = ("llama3", "yarn", "longrope")


def encoding(
    parameters: Mapping[str, Any], head_dim: int, fields: Fields, file: str
) -> rotary.Encoding:
    """The encoding of Transformers' rope parameters.

    "dynamic" and "longrope" depend on the length that is run: here it is the trained one.

    Args:
      parameters: as `rope_parameters` gives them.
      head_dim: of the layers that turn so.
      fields: the file's; max_position_embeddings is the longest context, tokens.
      file: names the file in errors.

    Raises:
      UserError: an unknown rope type, or one that lacks a parameter, has one that it does not
        take, or one of another type.
    """
    kind = parameters["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        hint = nearest(kind, ROPE_TYPES) if isinstance(kind, str) else ""
        raise UserError(
            f"{file}: rope type {kind!r} is not supported.{hint} Supported: {', '.join(ROPE_TYPES)}"
        )
    make, takes = ROPE_TYPES[kind]
    p = {key: value for key, value in parameters.items() if value is not None}
    _check_parameters(kind, p, takes.split(), file)
    try:
        made = make(p, fields["max_position_embeddings"], head_dim)
        made.inverse_frequencies(head_dim)  # LongRoPE's factors may be another head's
        return made
    except KeyError as error:
        raise UserError(f"{file}: rope type {kind!r} lacks the parameter {error}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _check_parameters(kind: str, p: dict[str, Any], takes: list[str], file: str) -> None:
    known = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned", *takes]
    for key, value in p.items():
        if key not in known:
            raise UserError(
                f"{file}: rope type {kind!r} takes no {key!r}.{nearest(key, known)} It takes"
                f" {', '.join(takes) or 'rope_theta'}"
            )
        is_right, expected = _type_of(key)
        if not is_right(value):
            raise UserError(f"{file}: {key}={value!r:.60} of rope type {kind!r} must be {expected}")
    if kind != "proportional" and p.get("partial_rotary_factor", 1) != 1:
        raise UserError(
            f"{file}: partial_rotary_factor={p['partial_rotary_factor']} with rope type {kind!r} is"
            " not supported: Transformers too does not run such a model of these families"
        )


def _type_of(key: str) -> tuple[Callable[[Any], bool], str]:
    """Whether a value is of a rope parameter's type, and that type in words."""
    if key in ("short_factor", "long_factor"):
        return lambda value: isinstance(value, list) and all(map(is_number, value)), "numbers"
    if key in ("truncate", "finetuned"):
        return lambda value: isinstance(value, bool), "true or false"
    if key in ("rope_type", "type"):
        return lambda value: isinstance(value, str), "a text"
    return is_number, "a number"


def _default(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    return rotary.rope(p["rope_theta"])


def _linear(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    return rotary.linear_rope(p["factor"], p["rope_theta"])


def _dynamic(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    context = p.get("original_max_position_embeddings", longest)
    if context != longest:
        raise UserError(
            f"original_max_position_embeddings={context} and max_position_embeddings={longest}:"
            " rope type 'dynamic' takes the second as the trained length; make them equal"
        )
    return rotary.dynamic_ntk_rope(p["factor"], context, context, p["rope_theta"])


def _proportional(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    """Transformers counts pairs by int(p d // 2), which rounding may make one fewer."""
    fraction = p.get("partial_rotary_factor", 1.0)
    turned = int(fraction * head_dim // 2)
    if turned != rotary.turned_pairs(head_dim, fraction):
        fraction = 2 * turned / head_dim
    return rotary.p_rope(fraction, p["rope_theta"], p.get("factor", 1.0))


def _yarn(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    names = ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor")
    optional = {name: p[name] for name in names if name in p}
    context = p["original_max_position_embeddings"]
    factor = p.get("factor", longest / context)
    return rotary.yarn_rope(factor, context, p["rope_theta"], **optional)


def _longrope(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    context = p["original_max_position_embeddings"]
    factor = p.get("factor", longest / context)
    return rotary.longrope(
        tuple(p["short_factor"]), tuple(p["long_factor"]), context, context, factor,
        p["rope_theta"], attention_factor=p.get("attention_factor"),
    )  # fmt: skip


def _llama3(p: Fields, longest: int, head_dim: int) -> rotary.Encoding:
    return rotary.llama3_rope(
        p["factor"], p["original_max_position_embeddings"], p["rope_theta"], p["low_freq_factor"],
        p["high_freq_factor"],
    )  # fmt: skip


# How each rope type is made, and the parameters that it takes beyond rope_theta.
ROPE_TYPES: dict[str, tuple[Callable[[Fields, int, int], rotary.Encoding], str]] = {
    "default": (_default, ""),
    "linear": (_linear, "factor"),
    "dynamic": (_dynamic, "factor original_max_position_embeddings"),
    "yarn": (
        _yarn,
        "factor original_max_position_embeddings beta_fast beta_slow truncate mscale"
        " mscale_all_dim attention_factor",
    ),
    "longrope": (
        _longrope,
        "factor original_max_position_embeddings short_factor long_factor attention_factor",
    ),
    "llama3": (
        _llama3,
        "factor original_max_position_embeddings low_freq_factor high_freq_factor",
    ),
    "proportional": (_proportional, "factor"),
}

# --- out --------------------------------------------------------------------------------------


def parameters_of(encoding: rotary.Rotary, head_dim: int) -> dict[str, Any]:
    """Transformers' rope parameters of an encoding in heads of that size.

    Raises:
      UserError: Transformers has no such rope type, or none for a part of the dimensions.
    """
    if getattr(encoding, "partial", 1.0) != 1:
        raise UserError(
            f"{rotary.name_of(encoding)}: a part of the dimensions turns, which models of these"
            " families do not run in Transformers; only rope type 'proportional' (p_rope) does"
        )
    match encoding:
        case rotary.Rope():
            parameters: dict[str, Any] = {"rope_type": "default"}
        case rotary.Nope():
            parameters = {"rope_type": "proportional", "partial_rotary_factor": 0.0}
        case rotary.PRope():
            fraction = _transformers_fraction(encoding.p, head_dim)
            parameters = {"rope_type": "proportional", "partial_rotary_factor": fraction}
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
    if hasattr(encoding, "context") and not isinstance(encoding, rotary.DynamicNtkRope):
        parameters["original_max_position_embeddings"] = whole(encoding.context)
    return parameters | {"rope_theta": float(getattr(encoding, "theta", 10_000.0))}


def _transformers_fraction(p: float, head_dim: int) -> float:
    """p, or where int(p d // 2) in Transformers would lose a pair to rounding half a pair more."""
    turned = rotary.turned_pairs(head_dim, p)
    return p if int(p * head_dim // 2) == turned else (2 * turned + 1) / head_dim


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
