"""Chips by the name that JAX gives their devices: how fast they are and what they hold.

Nominal numbers, of one whole chip, for dense products in bf16. Sources: Google's pages of each
version (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), NVIDIA's data sheets of A100, H100,
H200 and DGX B200 (their figures with sparsity are halved).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: the short one, that topologies begin with: "v5e".
      flops: peak of products in bf16, FLOP/s.
      memory: GiB of HBM.
      bandwidth: of that memory, GB/s.
      interconnect: of all links to other chips together, both directions, GB/s.
      devices: what JAX sees of it; all else here is shared by so many.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    devices: int = 1

    @property
    def device_flops(self) -> float:
        """Peak of one of JAX's devices, FLOP/s."""
        return self.flops / self.devices


_V5E = Chip("v5e", 197e12, 16, 819, 400)
_V5P = Chip("v5p", 459e12, 95, 2765, 1200)
_V6E = Chip("v6e", 918e12, 32, 1638, 800)

# By jax.Device.device_kind.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32, 1228, 600),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip("tpu7x", 2307e12, 192, 7380, 1200, devices=2),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40, 1555, 600),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 312e12, 80, 2039, 600),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989e12, 80, 3350, 900),
    "NVIDIA H200": Chip("H200 SXM", 989e12, 141, 4800, 900),
    "NVIDIA B200": Chip("B200", 2250e12, 180, 8000, 1800),
}


def chip(device_kind: str) -> Chip | None:
    """The chip of a device of that kind, or None where its speed is not known."""
    return CHIPS.get(device_kind)
