"""What one array of parameters is: shape, logical axes for sharding, and how it starts."""

import dataclasses

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One f32 array.

    Attributes:
      shape: its shape.
      axes: a logical axis name (see sharding.Rules) or None for each dimension.
      fan_in: it starts as a truncated normal of variance 1 / fan_in; where None, as
      constant: the same number everywhere.
      decay: whether weight decay applies; not to norms, biases and scales.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    fan_in: int | None = None
    constant: float = 0.0
    decay: bool = True

    def stacked(self, count: int) -> "Parameter":
        """The same array for `count` layers, with the layers first."""
        return dataclasses.replace(self, shape=(count, *self.shape), axes=("layers", *self.axes))

    def initializer(self) -> nn.initializers.Initializer:
        """How it starts, as (key, shape) -> array boxed with its logical axes."""
        if self.fan_in is None:
            init = nn.initializers.constant(self.constant)
        else:
            # 0.87962566 is the standard deviation of a unit normal cut at +-2.
            init = nn.initializers.truncated_normal(self.fan_in**-0.5 / 0.87962566)
        return nn.with_logical_partitioning(init, self.axes)
