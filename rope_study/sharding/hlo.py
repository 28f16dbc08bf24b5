"""A compiled program as text: what runs, how often, and what its devices send each other.

XLA's own account (`cost_analysis`) counts the body of a loop once; here it counts as often as it
runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
BETWEEN_SLICES = "between slices"

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program, where it runs.

    Attributes:
      opcode: "all-gather", "fusion", "copy".
      result: its type, "bf16[512,2048]{1,0}", or a tuple of such.
      text: what stands behind the opcode: operands and attributes.
      inside: the computation it is written in.
      fusion: the fusion that runs it, where one does.
      times: how often it runs in one execution of the program.
      exact: whether that is known, and not a loop of unknown length, which counts once.
      loop: whether it is in a loop.
    """

    opcode: str
    result: str
    text: str
    inside: str
    fusion: str
    times: int
    exact: bool
    loop: bool

    @property
    def sizes(self) -> list[int]:
        """Bytes of each array of the result that is no scalar."""
        return [_bytes(kind, shape) for kind, shape in _ARRAY.findall(self.result) if shape]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: of COLLECTIVES, or BETWEEN_SLICES.
      size: bytes of the whole that every device gives or gets.
      group: how many devices take part.
      instruction: where it stands.
    """

    kind: str
    size: int
    group: int
    instruction: Instruction

    @property
    def sent(self) -> float:
        """Bytes that one device sends, each time, where all send alike and none twice."""
        part = (self.group - 1) / self.group
        if self.kind in ("collective-permute", "collective-broadcast", BETWEEN_SLICES):
            return self.size
        return self.size * part * (2 if self.kind == "all-reduce" else 1)


def instructions(text: str) -> list[Instruction]:
    """All that a program runs, from `compiled.as_text()`."""
    entry, computations = _computations(text)
    return list(_walk(computations, entry, "", 1, exact=True, loop=False))


def collectives(program: list[Instruction], devices: int) -> list[Collective]:
    """The exchanges of a program over so many devices."""
    found = []
    for instruction in program:
        kind = instruction.opcode.removesuffix("-start")
        if kind == "send" and "megascale" in instruction.text:
            kind = BETWEEN_SLICES
        elif kind not in COLLECTIVES or _goes_on(instruction):
            continue
        elif "reduce-scatter" in instruction.inside:
            kind = "reduce-scatter"  # written as an all-reduce of which each device keeps a part
        if (group := _group(instruction.text, devices)) == 1:
            continue
        found.append(Collective(kind, _whole(instruction, kind, group), group, instruction))
    return found


def _goes_on(instruction: Instruction) -> bool:
    """Whether it is a later part of an exchange, which the TPU's compiler cuts up to hide it.

    One fusion starts it, others with products go on with it, a last one ends it.
    """
    ends = instruction.fusion.startswith("async-collective-done")
    return ends or instruction.inside.startswith("async_collective_fusion")


def _whole(instruction: Instruction, kind: str, group: int) -> int:
    """Bytes of the whole of an exchange."""
    sizes = instruction.sizes
    if instruction.opcode.endswith("-start") and instruction.result.startswith("("):
        sizes = sizes[len(sizes) // 2 :]  # what goes in, and then what comes out
    written_whole = instruction.opcode.startswith("all-reduce")
    return sum(sizes) * (group if kind == "reduce-scatter" and not written_whole else 1)


def _computations(text: str) -> tuple[str, dict[str, dict[str, tuple[str, str, str]]]]:
    """The entry's name, and by computation and instruction (opcode, result, what is behind)."""
    entry, computations, lines = "", {}, {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            name, rest = instruction.groups()
            if opcode := _OPCODE.search(rest):
                lines[name] = (opcode[1], rest[: opcode.start()], rest[opcode.end() :])
    return entry, computations


def _walk(
    computations: dict, inside: str, fusion: str, times: int, exact: bool, loop: bool
) -> Iterator[Instruction]:
    """The instructions of a computation and of all that it calls; every branch counts."""
    for name, (opcode, result, text) in computations[inside].items():
        yield Instruction(opcode, result, text, inside, fusion, times, exact, loop)
        if opcode == "while":
            body, trips = _named(text, "body"), _trips(computations, inside, text)
            count = times * (1 if trips is None else trips)
            yield from _walk(computations, body, "", count, exact and trips is not None, loop=True)
            continue
        for called in re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(text))):
            if called in computations:
                runs_in = name if opcode == "fusion" else fusion
                yield from _walk(computations, called, runs_in, times, exact, loop)


def _named(text: str, attribute: str) -> str:
    """The computation that an attribute names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", text)
    assert found is not None, attribute
    return found[1]


def _trips(computations: dict, inside: str, text: str) -> int | None:
    """How often a loop runs: told by the compiler, or counted up by one to a constant."""
    if told := _TRIPS.search(text):
        return int(told[1])
    lines = computations[_named(text, "condition")]
    limits = [t for opcode, _, t in lines.values() if opcode == "compare" and "=LT" in t]
    if len(limits) != 1:
        return None
    counter, limit = _operands(limits[0])[:2]
    last, index = _constant(lines, limit), re.search(r"index=(\d+)", lines[counter][2])
    state = computations[inside].get(_operands(text)[0])
    if last is None or index is None or state is None or state[0] != "tuple":
        return None
    first = _constant(computations[inside], _operands(state[2])[int(index[1])])
    return None if first is None else max(last - first, 0)


def _operands(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text.partition(")")[0])


def _constant(lines: dict, name: str) -> int | None:
    """The number that an instruction gives, through copies; None where it gives another thing."""
    opcode, _, text = lines.get(name, ("", "", ""))
    if opcode in ("copy", "bitcast", "convert"):
        return _constant(lines, _operands(text)[0])
    number = re.match(r"(\d+)\)", text)
    return int(number[1]) if opcode == "constant" and number else None


def _group(text: str, devices: int) -> int:
    """How many devices exchange with each other."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return devices


def _bytes(kind: str, shape: str) -> int:
    bits = re.search(r"\d+", kind)
    width = int(bits[0]) if bits else 8 * (kind == "pred")
    return math.prod(map(int, filter(None, shape.split(",")))) * width // 8
