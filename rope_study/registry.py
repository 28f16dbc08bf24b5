"""Components by name: "p_rope(p=0.75)" to an object and back; nothing is eval'd.

A component is a frozen dataclass whose fields are the arguments of its name. Name, equality, hash,
checks of types, saving and reading back follow from the fields. A registry holds the components of
one kind; adding one is a class with a decorator.
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar

from rope_study.checks import check_fields
from rope_study.errors import UserError, nearest
from rope_study.sharding.parameter import Parameter

Maker = TypeVar("Maker", bound=Callable[..., Any])


class Shapes(Protocol):
    """What a component may know of its decoder; DecoderConfig is one."""

    @property
    def d_model(self) -> int:
        """See DecoderConfig."""
        ...

    @property
    def heads(self) -> int:
        """See DecoderConfig."""
        ...

    @property
    def head_dim(self) -> int:
        """See DecoderConfig."""
        ...

    @property
    def norm_offset(self) -> float:
        """See DecoderConfig."""
        ...


class Component:
    """Base class; a subclass is a frozen dataclass that sets `kind`, its name in configurations."""

    kind: ClassVar[str]

    def __post_init__(self):
        check_fields(self, self.kind)

    @property
    def name(self) -> str:
        """Canonical, such as "p_rope(p=0.75, theta=10000)"; what is None is left out."""
        return spell(self.kind, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Every field by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def parameters(self, config: Shapes) -> dict[str, Parameter]:
        """Arrays of its own in every layer that has it."""
        return {}

    def shared_parameters(self, config: Shapes) -> dict[str, Parameter]:
        """Arrays that all layers that have it share."""
        return {}

    @classmethod
    def example(cls, head_dim: int = 64) -> Self:
        """One to try on short texts; classes whose arguments have no defaults override this."""
        return cls()


class Registry(Mapping[str, Callable[..., Any]]):
    """Constructors of one kind by name, in the order in which they were added."""

    def __init__(self, what: str):
        """`what` they make, for errors: "encoding"."""
        self.what = what
        self._makers: dict[str, Callable[..., Any]] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._makers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def add(self, maker: Maker) -> Maker:
        """A decorator: registers a component by its `kind`, a function by its own name."""
        self._makers[getattr(maker, "kind", maker.__name__)] = maker
        return maker

    def make(self, text: str, argument: str | None = None) -> Any:
        """What the call `text` makes, such as "rope" or "p_rope(p=0.75, theta=10_000)".

        Args:
          text: a registered name, or a call of one with literal arguments.
          argument: what the text was passed as, for errors.

        Raises:
          UserError: an unknown name (the nearest is suggested), an unknown, missing or wrong
            argument, or no call at all.
        """
        maker, positional, named = self._read(text, argument)
        try:
            return maker(*positional, **named)
        except UserError as error:
            raise UserError(str(error), argument) from error

    def canonical(self, text: str, argument: str | None = None) -> str:
        """The call with its arguments by name, without those that equal their defaults."""
        maker, positional, named = self._read(text, argument)
        signature = inspect.signature(maker)
        given = signature.bind(*positional, **named).arguments
        changed = {k: v for k, v in given.items() if v != signature.parameters[k].default}
        return spell(read_call(text)[0], **changed)

    def _read(self, text: str, argument: str | None) -> tuple[Callable[..., Any], list, dict]:
        name, positional, named = read_call(text, self.what, argument)
        if name not in self._makers:
            raise UserError(
                f"unknown {self.what} {name!r}.{nearest(name, self)} Known: {', '.join(self)}",
                argument,
            )
        maker = self._makers[name]
        check_arguments(maker, name, positional, named, argument)
        return maker, positional, named


def check_arguments(
    maker: Callable[..., Any], name: str, positional: list, named: dict, argument: str | None
) -> None:
    """Refuses arguments that `maker` does not take."""
    signature = inspect.signature(maker)
    takes = f"It takes {name}({signature_text(maker)})"
    for key in named:
        if key not in signature.parameters:
            raise UserError(
                f"{name} has no parameter {key!r}.{nearest(key, signature.parameters)} {takes}",
                argument,
            )
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise UserError(f"{name}: {error}. {takes}", argument) from error


def signature_text(maker: Callable[..., Any]) -> str:
    """The arguments of a constructor with their defaults, without types."""
    parameters = inspect.signature(maker).parameters.values()
    return ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)


# --- calls as text ----------------------------------------------------------------------------


def read_call(
    text: str, what: str = "call", argument: str | None = None
) -> tuple[str, list, dict[str, Any]]:
    """Name, positional and named arguments of "name" or "name(1, key=2)" with literal values."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        # keyword.arg is None for **mappings, which are refused like any other expression.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            positional = [ast.literal_eval(value) for value in node.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(named) == len(node.keywords):
                return node.func.id, positional, named
    except (SyntaxError, ValueError, TypeError):
        pass
    raise UserError(
        f"{what} {text!r} is not understood: write a name with literal arguments,"
        " such as rope or p_rope(p=0.75, theta=10_000)",
        argument,
    )


def spell(name: str, **values: Any) -> str:
    """The canonical text of a call, which `read_call` reads back; what is None is left out."""
    given = {key: value for key, value in values.items() if value is not None}
    return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in given.items())})"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        items = ", ".join(map(_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, bool | str):
        return repr(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
