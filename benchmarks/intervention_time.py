"""How long six edits of a released model take on ten passages, in wall and in CPU seconds.

    python benchmarks/intervention_time.py --checkpoint=gemma-3-270m-q4_k_m.gguf

The fastest, a middle and the slowest eighth of the pairs, unrotated and set to zero, by
interventions.measure: with all that it measures by default, without copying, and losses alone.
Compiling counts. CPU seconds are of all cores; wall seconds mean little where a machine is shared.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import jax

from rope_study import checkpoints
from rope_study.data import load_texts
from rope_study.interventions import ablate, band, measure, unrotate

MEASURED = {
    "loss, attention, copying": {},
    "loss, attention": {"copies": 0},
    "loss": {"copies": 0, "attention": False},
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--measured", nargs="+", default=list(MEASURED), choices=MEASURED)
    arguments = parser.parse_args()
    decoder, params = checkpoints.load(arguments.checkpoint)
    tokenizer = checkpoints.load_tokenizer(arguments.checkpoint)
    batch = tokenizer.encode_batch([text.text for text in load_texts("default")])
    pairs = decoder.config.head_dim // 2
    eighths = {
        "fastest": band(fastest=1 / 8),
        "middle": band(indices=range(pairs // 2, pairs // 2 + pairs // 8)),
        "slowest": band(slowest=1 / 8),
    }
    edits = {
        f"{make.__name__} {name}": make(pairs_of)
        for make in (unrotate, ablate)
        for name, pairs_of in eighths.items()
    }
    print(
        f"{Path(arguments.checkpoint).name}: {int(batch[1].sum())} tokens in {len(batch[0])} texts,"
        f" {len(edits)} edits; {os.cpu_count()} cores, jax {jax.__version__}"
    )
    for name in arguments.measured:
        jax.clear_caches()
        wall, cpu = time.perf_counter(), cpu_seconds()
        losses = measure(decoder, params, [batch], edits, **MEASURED[name]).loss.values
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        of_each = ", ".join(f"{loss:.4f}" for loss in losses)
        load = os.getloadavg()[0]
        print(
            f"{name:<26} {wall:6.1f} s {cpu:6.1f} CPU s, load {load:.0f}; losses {of_each}",
            flush=True,
        )


def cpu_seconds() -> float:
    """Of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
