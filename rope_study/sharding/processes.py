"""Processes of one run on many hosts: their start, which one writes, and telling all others."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rope_study import files
from rope_study.errors import UserError

# For every process, where nothing else says which processes there are.
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What starts several processes, and the variable in which it says how many: JAX finds the rest.
# Of Slurm the number in this step: a script that sbatch runs is one, whatever was allocated.
LAUNCHERS = {"Slurm": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# Of the pods of an indexed job, which are as many as the job says.
KUBERNETES_JOB = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
# The hosts of a TPU slice in Kubernetes; Cloud TPU VMs ask their metadata server instead.
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
TIMEOUT = 300  # seconds until all have to have started
Told = TypeVar("Told")


def start() -> None:
    """Starts jax.distributed where several hosts work together; does nothing elsewhere.

    JAX finds the other processes by itself on Cloud TPU VMs of one slice or several, in TPU slices
    of Kubernetes, under Slurm and Open MPI, and in an indexed job of Kubernetes. Elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for every process;
    CPUs then talk over gloo. Must run before anything asks for devices. Where others do not come
    within TIMEOUT the program ends, with one line and status 1.

    Raises:
      UserError: some of the three are set and others cannot be found, or a number is none.
    """
    launcher = _launcher()
    given = [name for name in (ADDRESS, COUNT, NUMBER) if name in os.environ]
    if jax.distributed.is_initialized() or not (launcher or given):
        return
    missing = [name for name in (ADDRESS, COUNT, NUMBER) if name not in given]
    if missing and not launcher:
        raise UserError(
            f"{' and '.join(given)} set, but not {' and '.join(missing)}: several processes need"
            " all three, one process none of them"
        )
    if launcher != "TPU":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    waiting = threading.Timer(TIMEOUT, _give_up)
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            os.environ.get(ADDRESS), _number(COUNT), _number(NUMBER),
            local_device_ids=_gpus(),
            cluster_detection_method=None if launcher else "deactivate",
            initialization_timeout=2 * TIMEOUT,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"{launcher or ADDRESS}: the processes of this run do not find each other ({error});"
            f" set {ADDRESS} (host:port), {COUNT} and {NUMBER} for every process"
        ) from error
    finally:
        waiting.cancel()


def _give_up() -> None:
    """Ends the program before JAX does: it aborts where the others do not come."""
    print(
        f"error: not all processes of this run started within {TIMEOUT} seconds: start all again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _launcher() -> str | None:
    """What started several processes, or None where it is not known or there is one."""
    if _is_tpu_of_several_hosts():
        return "TPU"
    for name, variable in LAUNCHERS.items():
        if (_number(variable) or 1) > 1:
            return name
    return "Kubernetes" if all(name in os.environ for name in KUBERNETES_JOB) else None


def _is_tpu_of_several_hosts() -> bool:
    """Whether JAX would look for the hosts of a TPU, and there can be more than this one."""
    env = os.environ
    on_tpu = env.get("TPU_ML_PLATFORM") == "JAX"  # set by JAX itself where there are TPU chips
    if not on_tpu or "tpu" not in (env.get("JAX_PLATFORMS") or "tpu"):
        return False
    hosts = next((env[name] for name in TPU_HOSTS if name in env), None)
    if hosts is not None:
        return "," in hosts or (_number("MEGASCALE_NUM_SLICES") or 1) > 1
    return "TPU_PROCESS_ADDRESSES_PATH" in env or "TPU_SKIP_MDS_QUERY" not in env


def _gpus() -> list[int] | None:
    """[]: all that this process sees; None: JAX's choice.

    Under Slurm and Open MPI that is one GPU a process, by its number on the host: wrong where it is
    alone there and has them all, and where it was given one GPU already.
    """
    nodes = _number("SLURM_STEP_NUM_NODES")
    is_alone = nodes is not None and nodes == _number("SLURM_STEP_NUM_TASKS")
    is_alone = is_alone or _number("OMPI_COMM_WORLD_LOCAL_SIZE") == 1
    sees_one = "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    chosen = "JAX_LOCAL_DEVICE_IDS" in os.environ
    return [] if (is_alone or sees_one) and not chosen else None


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise UserError(f"{variable}={text!r} is no whole number")
    return None if text is None else int(text)


def is_main_process() -> bool:
    """Whether this process writes the files and the progress bar."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Returns once every process of the run has come to this point; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def on_main(decide: Callable[[], Told]) -> Told:
    """What `decide` gives on the main process, as JSON tells it to all; its UserError too.

    Files are one process's: what it reads there the others learn from it.
    """
    if jax.process_count() == 1:
        return decide()
    outcome: dict[str, Any] = {}
    if is_main_process():
        try:
            with files.explained():
                outcome = {"value": decide()}
        except UserError as error:
            outcome = {"error": [error.problem, error.argument, error.remedy]}
    told = json.loads(_broadcast(json.dumps(outcome)))
    if "error" in told:
        raise UserError(*told["error"])
    return told["value"]


def all_agree(here: bool) -> bool:
    """Whether it holds on every process."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def check_same(values: Mapping[str, Any]) -> None:
    """UserError, on all processes, where one of the values is not the same on all."""
    if not jax.distributed.is_initialized():
        return
    first, *others = map(json.loads, _gather(json.dumps(values, default=str)))
    differing = [
        f"{name} is {there.get(name)!r} on process {process} and {first.get(name)!r} on process 0"
        for process, there in enumerate(others, start=1)
        for name in sorted(first.keys() | there.keys())
        if there.get(name) != first.get(name)
    ]
    if differing:
        more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
        raise UserError(f"{differing[0]}{more}: start every process with the same settings")


def largest(here: int) -> int:
    """The largest of the numbers that the processes give."""
    if jax.process_count() == 1:
        return here
    return int(np.max(multihost_utils.process_allgather(np.array(here))))


def to_host(array: Any) -> np.ndarray:
    """The whole array on this host, also where its devices are of several; all have to call it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content), np.int32))
    contents = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [bytes(row[:size]).decode() for row, size in zip(contents, sizes, strict=True)]


def _broadcast(text: str) -> str:
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content), np.int32)))
    content = np.resize(content, size)  # what the others hold does not count
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)).decode()
