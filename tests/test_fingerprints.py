"""The training step of six configurations is the program that it was, operation by operation.

What each consists of is kept in tests/data/fingerprints, a file for each pinned version of JAX.
After a change that was meant to change programs, accept them under every version:

    python tests/test_fingerprints.py --accept
"""

import collections
import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxlib.mlir import ir

from rope_study import sharding
from rope_study.decoder import Decoder, fit_layout, presets, variants
from rope_study.training import settings
from rope_study.training.trainer import Trainer

FILE = Path(__file__).parent / "data/fingerprints" / f"jax_{jax.__version__}.json"
ACCEPT = "python tests/test_fingerprints.py --accept"

# Variant, what else the decoder has, parts of a batch, mesh (None: one device).
CONFIGS = {
    "rope in bf16": ("rope", {"compute_dtype": "bfloat16"}, 1, None),
    "gemma3, windows and a remainder": ("gemma3(window=8)", {"layers": 8}, 1, None),
    "p_rope, QK-norm, remat": ("p_rope(p=0.75) + qk_norm()", {"remat": "full"}, 1, None),
    "unrolled, untied": ("rope", {"scan": False, "tied": False}, 1, None),
    "alibi": ("nope + alibi()", {}, 1, None),
    "two parts on eight devices": ("rope", {}, 2, "data=2,fsdp=2,tensor=2"),
}
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
Fingerprint = dict[str, str]  # of each kind of operation how many, and the bytes of their results
pytestmark = pytest.mark.eight_devices


def fingerprint(name: str) -> Fingerprint:
    """The operations of the lowered step; on several devices also what the compiler adds."""
    variant, changes, accumulate, mesh = CONFIGS[name]
    _, decoder = variants.apply(dataclasses.replace(presets.tiny(), **changes), variant)
    layout = sharding.make_layout(mesh) if mesh else sharding.one_device()
    config = settings.default()
    config.train.accumulate = accumulate
    train = settings.TrainSettings(**config.train.to_dict())
    trainer = Trainer(Decoder(decoder, fit_layout(decoder, layout)), train, seed=0)
    windows = jax.ShapeDtypeStruct((16, 33), jnp.int32)
    lowered = trainer.step.lower(trainer.abstract_state, windows)
    counts = operations(lowered)
    return counts | collectives(lowered.compile().as_text()) if mesh else counts


def operations(lowered: jax.stages.Lowered) -> Fingerprint:
    """Of StableHLO, by kind and type of the first result: "stablehlo.dot_general bf16"."""
    found = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name.startswith(("builtin.", "func.")):
            return ir.WalkResult.ADVANCE  # how a program is written, not what it does
        types = " ".join(map(str, operation.results.types))
        shapes = re.findall(r"tensor<((?:\d+x)*)(\w+)>", types)
        kind = " ".join([operation.name, *(element for _, element in shapes[:1])])
        found.append((kind, sum(size(numbers, element) for numbers, element in shapes)))
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir().operation.walk(visit)
    return summed(found)


def collectives(program: str) -> Fingerprint:
    """Of a compiled program, by kind: "compiled all-gather"."""
    found = []
    for results, kind in re.findall(rf" = (.*?) ({COLLECTIVES})(?:-start)?\(", program):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", results)
        found.append(
            (f"compiled {kind}", sum(size(numbers, element) for element, numbers in shapes))
        )
    return summed(found)


def summed(found: list[tuple[str, int]]) -> Fingerprint:
    """(kind, bytes) of every operation, kind by kind."""
    kinds, sizes = collections.Counter(kind for kind, _ in found), collections.Counter()
    for kind, size_of_one in found:
        sizes[kind] += size_of_one
    return {kind: f"{number:,} of {sizes[kind]:,} bytes" for kind, number in kinds.items()}


def size(numbers: str, element: str) -> int:
    """Bytes of an array: "16x32x" or "16,32" of "bf16"; what has no bits in its name has 1 byte."""
    bits = int(re.sub(r"\D", "", element) or 8)
    return math.prod(map(int, re.findall(r"\d+", numbers))) * max(bits // 8, 1)


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """A line for each kind of operation that is not as it was."""
    return "\n".join(
        f"  {kind}: {before.get(kind, 'none')} -> {now.get(kind, 'none')}"
        for kind in sorted(before | now)
        if before.get(kind) != now.get(kind)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_program_is_what_it_was(name):
    if not FILE.exists():
        pytest.skip(f"no programs are kept of jax {jax.__version__}; keep these by: {ACCEPT}")
    changed = changes(json.loads(FILE.read_text())[name], fingerprint(name))
    assert not changed, (
        f"the training step of {name!r} is another program than {FILE.name} has:\n{changed}\n"
        f"Meant so? {ACCEPT}\n(under each Python, and commit the files with the change)"
    )


def test_changes_are_named_by_operation():
    before = summed([("stablehlo.sine f32", 64)] * 4 + [("stablehlo.add f32", 8)])
    now = summed([("stablehlo.add f32", 8), ("compiled all-gather", 4096)])
    assert changes(before, now) == (
        "  compiled all-gather: none -> 1 of 4,096 bytes\n"
        "  stablehlo.sine f32: 4 of 256 bytes -> none"
    )


if __name__ == "__main__":
    assert sys.argv[1:] == ["--accept"], f"usage: {ACCEPT}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    FILE.parent.mkdir(exist_ok=True)
    kept = {name: fingerprint(name) for name in CONFIGS}
    FILE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    print(f"{FILE}: the programs of {len(kept)} configurations")
