"""TPU topologies on a machine that has no TPU: the devices that libtpu compiles for."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from rope_study.errors import UserError, nearest
from rope_study.sharding.mesh import Device

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip
# By version the slices that Google Cloud offers, in chips.
TOPOLOGIES = {"v4": _CUBES, "v5e": _SQUARES, "v5p": _CUBES, "v6e": _SQUARES, "tpu7x": _CUBES}

# Without these libtpu asks the cloud which machine this is, lets one process in only, and logs.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def topology_devices(name: str, slices: int = 1) -> list[Device]:
    """The devices of a topology, to compile for and not to run on.

    Args:
      name: version and chips along each axis: "v5e:4x4", "v5p:2x2x2".
      slices: so many of them, joined by the network of the data centre.

    Raises:
      UserError: no such topology, or no libtpu.
    """
    version, _, shape = name.partition(":")
    if shape not in TOPOLOGIES.get(version, ()):
        known = [f"{version}:{shape}" for version in TOPOLOGIES for shape in TOPOLOGIES[version]]
        raise UserError(
            f"unknown topology {name!r}.{nearest(name, known)} Known: v5e and v6e with"
            f" {', '.join(_SQUARES)}; v4, v5p and tpu7x with {', '.join(_CUBES)}",
            "topology",
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs libtpu: pip install 'rope_study[tpu]'")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = _options(version, [int(chips) for chips in shape.split("x")])
    if slices > 1:
        options["num_slices"] = slices
    return list(topologies.get_topology_desc(name, "tpu", **options).devices)


def _options(version: str, shape: list[int]) -> dict[str, Any]:
    """What libtpu does not conclude from the name."""
    options: dict[str, Any] = {}
    if version == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as in use
    if shape == [1, 1]:
        options["chips_per_host_bounds"] = (1, 1, 1)
    # Whole cubes, and whole pods of v5e and v6e, are tori: their ends are linked.
    if shape == [16, 16] or (len(shape) == 3 and all(chips % 4 == 0 for chips in shape)):
        options["wrap"] = (True, True, True)
    return options
