"""Encodings by name: what a configuration or the command line may write.

That is a call with literal arguments, "p_rope(p=0.5, theta=500_000)", or `module:name` for a
function or an Encoding class of the user's own. `python -m rope_study.encodings` lists them all.
"""

import dataclasses
import functools
import importlib
import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.errors import UserError
from rope_study.registry import check_arguments, read_call, spell

# Imported so that they are registered.
from rope_study.rotary import basic, fourier, learned, scaled  # noqa: F401
from rope_study.rotary.encoding import ENCODINGS, Encoding, Rotary


@dataclasses.dataclass(frozen=True)
class Imported:
    """An object of the user's own, under the name that leads to it: it need not know its own."""

    path: str  # module:name
    function: Rotary

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """The function's."""
        return self.function(x, positions)


def parse(text: str | Rotary, argument: str | None = None) -> Rotary:
    """The encoding that a text names; a function or an Encoding comes back as it is.

    Raises:
      UserError: unknown name (the nearest is suggested), unknown or wrong parameter, not a call
        with literal arguments, or a module:name that cannot be imported.
    """
    if not isinstance(text, str):
        return text
    if is_import(text):
        return _import(text, argument)
    return ENCODINGS.make(text, argument)


def is_import(text: str) -> bool:
    """Whether the text names something to import, module:name or module:Name(arguments)."""
    return ":" in text.partition("(")[0]


def name_of(encoding: Rotary) -> str:
    """For tables and folders; `parse` reads it back: an Encoding's own name, or module:name."""
    if isinstance(encoding, Encoding):
        known = ENCODINGS.get(encoding.kind) is type(encoding)
        if known and type(encoding).__module__.startswith("rope_study."):
            return encoding.name
        return spell(_path(type(encoding)), **encoding.arguments())
    if isinstance(encoding, Imported):
        return encoding.path
    return _path(encoding if inspect.isroutine(encoding) else type(encoding))


def _path(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _import(text: str, argument: str | None) -> Rotary:
    module, _, call = text.partition(":")
    name, positional, named = read_call(call, "encoding", argument)
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"rotary function {text!r} cannot be imported ({error}): write module:function,"
            " with the module on PYTHONPATH",
            argument,
        ) from error
    if inspect.isclass(imported):
        if issubclass(imported, Encoding):
            check_arguments(imported, name, positional, named, argument)
            return imported(*positional, **named)
        raise UserError(f"{text!r} is a class, but no rotary.Encoding", argument)
    if not callable(imported) or positional or named:
        raise UserError(
            f"{text!r} is neither a function (x, positions) -> x nor an Encoding class", argument
        )
    if getattr(imported, "__hash__", None) is None:
        raise UserError(f"{text!r} has no hash, and compiled functions are kept by it", argument)
    encoding = cast(Rotary, imported)
    return encoding if _leads_back(encoding) else Imported(f"{module}:{name}", encoding)


def _leads_back(encoding: Rotary) -> bool:
    """Whether the name of a function is where it lies: not that of an object, partial or lambda."""
    if isinstance(encoding, Encoding):
        return True
    module, _, name = name_of(encoding).partition(":")
    return getattr(importlib.import_module(module), name, None) is encoding


def check_named(encoding: Rotary, argument: str | None = None) -> None:
    """UserError for an encoding whose name does not lead back to it, as a checkpoint needs it."""
    name = name_of(encoding)
    try:
        if parse(name) == encoding:
            return
    except UserError:
        pass
    raise UserError(
        f"{name} cannot be found again by its name: give the encoding a name of its own at the top"
        " of a module, and pass it as 'module:name'",
        argument,
    )


@functools.lru_cache(maxsize=256)
def check_traced(
    encoding: Rotary,
    heads: int,
    head_dim: int,
    dtype: str,
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = (),
) -> None:
    """Traces an encoding as the decoder will, without computing anything.

    Args:
      encoding, heads, head_dim, dtype: what is called, and what x it gets.
      arrays: name and shape of each f32 array that an encoding of trained frequencies gets too.

    Raises:
      UserError: it raises, or does not give back the shape and dtype of what it was given; or its
        frequencies are not one finite number a pair.
    """
    name = name_of(encoding)
    x = jax.ShapeDtypeStruct((1, 2, heads, head_dim), jnp.dtype(dtype))
    positions = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    w = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in arrays}
    try:
        if isinstance(encoding, Encoding):
            _check_frequencies(encoding, head_dim)
        turned = jax.eval_shape(encoding, x, positions, *([w] if arrays else []))
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user's own may raise
        problem = (str(error).strip() or "without a message").splitlines()[0]
        raise UserError(
            f"encoding {name} fails on x={_shape(x)}, positions={_shape(positions)}:"
            f" {type(error).__name__}: {problem}",
            "rotary",
        ) from error
    if getattr(turned, "shape", None) != x.shape or turned.dtype != x.dtype:
        raise UserError(
            f"encoding {name} makes {_shape(turned)} of {_shape(x)}: it has to keep shape and type",
            "rotary",
        )


def _check_frequencies(encoding: Encoding, head_dim: int) -> None:
    frequencies = np.asarray(encoding.inverse_frequencies(head_dim))
    if frequencies.shape != (head_dim // 2,) or not np.isfinite(frequencies).all():
        raise UserError(
            f"encoding {name_of(encoding)}: inverse_frequencies({head_dim}) must be"
            f" {head_dim // 2} finite numbers, not {frequencies}",
            "rotary",
        )


def _shape(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
