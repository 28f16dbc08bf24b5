"""What a layer may have besides Gemma 1's attention: the base of query scales and logit functions.

A part is a frozen dataclass whose fields are the arguments of its spelling, so that it is hashable
(static under jit), compares by value, and can be written to and read from model.json.
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from rope_study.parameters import Parameter
from rope_study.spelling import check_numbers, spell

if TYPE_CHECKING:
    from rope_study.architecture import DecoderConfig


class Part:
    """Base class; a subclass is a frozen dataclass that sets `kind`, its name in spellings."""

    kind: ClassVar[str]

    def __post_init__(self):
        check_numbers(self.kind, **self._arguments())

    @property
    def name(self) -> str:
        """The canonical spelling, such as "log_n(train_length=2048)"; absent arguments are None."""
        return spell(self.kind, **self._arguments())

    def parameters(self, config: "DecoderConfig") -> dict[str, Parameter]:
        """Arrays of its own in every layer that has it."""
        return {}

    def shared_parameters(self, config: "DecoderConfig") -> dict[str, Parameter]:
        """Arrays that all layers that have it share."""
        return {}

    def _arguments(self) -> dict:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}
