"""Plans of the configurations for TPUs, compiled without one: `make plan`.

    python benchmarks/plans.py > results/plans.txt      # all of them: an hour on two cores
    python benchmarks/plans.py wiki --topology=v5e:4x4  # those whose command has these words

Each is the command as a user gives it, and what it prints.
"""

import platform
import subprocess
import sys

import jax

WIKI, FLAN = (f"--config=configs/gemma_2b_{text}.py" for text in ("wiki", "flan"))
SEVEN = f"{WIKI} --config.model.preset=gemma_7b --probe --dtype=bfloat16"
PLANS = (
    f"{WIKI} --topology=v5e:4x4",
    f"{FLAN} --topology=v5e:4x4",
    f"{WIKI} --topology=v5e:16x16 --config.train.accumulate=2",
    f"{WIKI} --topology=v5p:2x2x2 --config.train.accumulate=16",
    f"{WIKI} --topology=v6e:4x4",
    f"{WIKI} --topology=v5e:4x4 --slices=2 --config.mesh=data=2,fsdp=-1"
    " --config.train.accumulate=16",
    f"{SEVEN} --topology=v5e:2x4 --length=8192 --config.mesh=tensor=-1",
    f"{SEVEN} --topology=v5e:4x4 --length=131072 --config.mesh=tensor=-1",
    "--config=configs/table2_small.py --topology=v5e:2x4",
    "--config=configs/quickstart.py --topology=v5e:2x2",
)


def main(words: list[str]) -> None:
    """Prints the plans whose command has all of these words."""
    print(f"# python benchmarks/plans.py {' '.join(words)}".rstrip())
    print(f"# Python {platform.python_version()}, jax {jax.__version__}; no TPU", flush=True)
    for arguments in PLANS:
        if all(word in arguments for word in words):
            print(f"\n# python -m rope_study.plan {arguments}", flush=True)
            command = [sys.executable, "-m", "rope_study.plan", *arguments.split(" ")]
            status = subprocess.run(command, stderr=subprocess.STDOUT).returncode
            print(f"# exit status {status}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
