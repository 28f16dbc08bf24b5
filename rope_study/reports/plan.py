"""A plan as text: memory, FLOPs and exchanges of a program, and the time and price they imply.

Nothing here was measured on the devices: what the compiler says is called so, and the rest is
arithmetic from assumptions that stand on lines of their own.
"""

import dataclasses

from rope_study.reports.programs import GIB, Compiled, Work
from rope_study.sharding.chips import Chip
from rope_study.sharding.hlo import BETWEEN_SLICES, Collective

# Dollars for a chip and an hour, on demand, in regions of the USA.
PRICES = {"v4": 3.22, "v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
PRICES_OF = "as looked up in November 2026"


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What cannot be known before the run.

    Attributes:
      efficiency: share of their peak that units for products reach, at products.
      network: GB/s that one chip sends to other slices.
      price: dollars for a chip and an hour; None: not known.
    """

    efficiency: float
    network: float
    price: float | None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one call: of its parts the longest, which hides the others.

    Attributes:
      products, memory, exchanges, network: seconds that each takes by itself.
    """

    products: float
    memory: float
    exchanges: float
    network: float

    @property
    def seconds(self) -> float:
        """The longest of the four."""
        return max(self.products, self.memory, self.exchanges, self.network)


def estimate(
    work: Work, compiled: Compiled, chip: Chip, devices: int, assumed: Assumptions
) -> Estimate:
    """The time of one call on so many devices, which are such chips or parts of them."""
    between = sum(_sent(c) for c in compiled.exchanges if c.kind == BETWEEN_SLICES)
    within = sum(_sent(c) for c in compiled.exchanges if c.kind != BETWEEN_SLICES)
    return Estimate(
        work.computed_flops * work.passes / (devices * chip.device_flops * assumed.efficiency),
        compiled.traffic / (chip.bandwidth * 1e9 / chip.devices),
        within / _link_speed(chip),
        between / (assumed.network * 1e9 / chip.devices),
    )


def _link_speed(chip: Chip) -> float:
    """Bytes a second that one device sends to others of its slice."""
    return chip.interconnect * 1e9 / 2 / chip.devices


def _sent(collective: Collective) -> float:
    return collective.sent * collective.instruction.times


def memory_lines(compiled: Compiled, chip: Chip) -> list[str]:
    """What one device holds."""
    available = chip.memory / chip.devices
    lines = [f"memory of a {_device(chip)}, of {available:g} GiB (the compiler's account)"]
    lines += [f"  {_gib(size):>9}  {name}" for name, size in compiled.memory.items()]
    return [*lines, f"  {_gib(compiled.total):>9}  together: fits"]


def work_lines(work: Work, compiled: Compiled, call: str) -> list[str]:
    """What one call computes and exchanges."""
    lines = [
        f"a {call}",
        f"  {work.model_flops / 1e15:.4g} PFLOP of the model's products, each once",
        f"  {work.computed_flops / 1e15:.4g} PFLOP with those that remat computes again",
        f"  {_gib(compiled.traffic)} between memory and units of a device, the body of a loop"
        " counted once (the compiler's)",
        "  exchanges of a device        times       of in all     sends",
    ]
    groups: dict[tuple[str, str], list[Collective]] = {}
    for exchange in compiled.exchanges:
        where = "in loops" if exchange.instruction.loop else ""
        groups.setdefault((exchange.kind, where), []).append(exchange)
    for (kind, where), group in sorted(groups.items()):
        times = sum(c.instruction.times for c in group)
        whole = sum(c.size * c.instruction.times for c in group)
        sent = sum(map(_sent, group))
        lines.append(f"    {kind:<18} {where:<8} {times:>6,} {_gib(whole):>13} {_gib(sent):>12}")
    return lines if groups else [*lines[:-1], "  no exchanges between devices"]


def time_lines(work: Work, timed: Estimate, chip: Chip, devices: int, call: str) -> list[str]:
    """How long one call takes."""
    peak = devices * chip.device_flops * timed.seconds
    parts = (
        f"products {timed.products:.3g} s, memory traffic {timed.memory:.3g} s or more, exchanges"
        f" {timed.exchanges:.3g} s"
    )
    if timed.network:
        parts += f", between slices {timed.network:.3g} s"
    return [
        f"expected, where all holds that is assumed below: a {call} in {timed.seconds:.3g} s",
        f"  {parts}",
        f"  {work.tokens / timed.seconds:,.0f} tokens/s, MFU {work.model_flops / peak:.1%}",
    ]


def run_lines(seconds: float, steps: int, runs: int, chips: int, assumed: Assumptions) -> list[str]:
    """Hours and dollars of a whole run, and of all runs of a study."""
    hours = steps * seconds / 3600
    lines = [f"  {steps:,} steps: {_cost(hours, chips, assumed)}"]
    if runs > 1:
        lines.append(f"  a study of {runs} runs: {_cost(runs * hours, chips, assumed)}")
    return lines


def _cost(hours: float, chips: int, assumed: Assumptions) -> str:
    time = f"{hours:,.1f} hours, {hours * chips:,.0f} chip hours"
    return time if assumed.price is None else f"{time}, ${hours * chips * assumed.price:,.0f}"


def assumption_lines(
    work: Work, compiled: Compiled, chip: Chip, assumed: Assumptions, slices: int
) -> list[str]:
    """Every assumption, a line each."""
    lines = [
        "assumed, as nothing of this ran on a TPU",
        f"  products reach {assumed.efficiency:.0%} of {chip.device_flops / 1e12:,.0f} TFLOP/s a"
        f" {_device(chip)}, bf16 (--efficiency)",
        f"  exchanges go at {_link_speed(chip) / 1e9:g} GB/s a {_device(chip)}, half of what its"
        " links carry both ways, all of them in use",
        f"  memory traffic goes at {chip.bandwidth / chip.devices:g} GB/s",
        "  these hide each other: the longest counts",
        "  nothing waits: not for data, evaluation, checkpoints or restarts",
    ]
    if work.passes > 1:
        lines.append(f"  products of f32 take {work.passes} passes of bf16")
    if slices > 1:
        lines.append(f"  a chip sends {assumed.network:g} GB/s to other slices (--network)")
    if not compiled.exact:
        lines.append("  loops whose length the compiler does not tell run once")
    return lines


def price_line(chip: Chip, assumed: Assumptions) -> str:
    """What a chip costs, and where that is from."""
    if assumed.price is None:
        return f"  no price of a {chip.name} is known here: give --price"
    price = f"  ${assumed.price:.2f} for a chip and an hour"
    if assumed.price != PRICES.get(chip.name):
        return f"{price}, as given"
    return f"{price}: list price on demand in US regions, {PRICES_OF} (--price)"


def _device(chip: Chip) -> str:
    return "chip" if chip.devices == 1 else f"device, {chip.devices} a chip"


def _gib(size: float) -> str:
    return f"{size / GIB:,.3f} GiB"
