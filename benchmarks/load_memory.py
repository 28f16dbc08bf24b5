"""Peak memory of loading a checkpoint: random weights of a released shape, written and read again.

    python benchmarks/load_memory.py --preset=gemma_2b

Writes a Hugging Face folder of that shape in bf16 (5 GB for gemma_2b, 17 GB for gemma_7b), loads it
in a process of its own and compares its peak with the parameters plus the largest tensor.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from rope_study.checkpoints import runs
from rope_study.checkpoints.hugging_face.export import config_fields
from rope_study.checkpoints.hugging_face.folder import spec_tables
from rope_study.checkpoints.weight_map import make_weight_map, parameter_at
from rope_study.decoder import Decoder, DecoderConfig, presets
from rope_study.sharding import one_device

LOAD = """
import json, re, sys, time
import jax
from rope_study import checkpoints
def peak():  # not ru_maxrss, which a new process takes over from its parent
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
jax.numpy.zeros(1).block_until_ready()
before, start = peak(), time.perf_counter()
decoder, params = checkpoints.load(sys.argv[1])
jax.block_until_ready(params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"before": before, "peak": peak(), "parameters": size,
                  "seconds": time.perf_counter() - start}))
"""


def write(config: DecoderConfig, folder: Path) -> int:
    """A random checkpoint in bf16, a file a layer; returns the bytes of the largest tensor."""
    shapes = runs.abstract_params(Decoder(config, one_device()))
    (folder / "config.json").write_text(json.dumps(config_fields(config)))
    files: dict[str, dict[str, tuple]] = {}
    for path, specs in make_weight_map(config, *spec_tables(config, "model.")).items():
        shape = parameter_at(shapes, path).shape
        for i, spec in enumerate(specs):
            file = f"layer-{i}.safetensors" if len(path) > 1 else "top.safetensors"
            stored = spec.stored_shape(shape[-len(spec.axes) :])
            files.setdefault(file, {})[spec.name] = stored
    random, largest = np.random.default_rng(0), 0
    for file, tensors in files.items():
        arrays = {
            name: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for name, shape in tensors.items()
        }
        largest = max(largest, *(a.nbytes for a in arrays.values()))
        safetensors.numpy.save_file(arrays, folder / file, metadata={"format": "pt"})
    index = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return largest


def load(folder: Path) -> dict[str, float]:
    """What loading took in a process of its own: bytes before, at the peak, of parameters."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"loading failed: {done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="gemma_2b", choices=presets.PRESETS)
    parser.add_argument("--folder", help="where to write; a temporary folder if not given")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        largest = write(presets.PRESETS.make(args.preset), folder)
        measured = load(folder)
    finally:
        shutil.rmtree(folder)
    gib = lambda key: measured[key] / 2**30  # noqa: E731
    above = gib("peak") - gib("before")
    print(
        f"{args.preset}: parameters {gib('parameters'):.2f} GiB, largest tensor"
        f" {largest / 2**30:.2f} GiB; loading adds {above:.2f} GiB at its peak,"
        f" {above / (gib('parameters') + largest / 2**30):.2f} of their sum,"
        f" in {measured['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
