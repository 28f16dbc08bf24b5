"""Processes of one run on many hosts: their start, which one writes, and telling all others."""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rope_study import files
from rope_study.errors import UserError

# For every process, where nothing else says which processes there are.
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What starts several processes, and the variable in which it says how many: JAX finds the rest.
LAUNCHERS = {"Slurm": "SLURM_NTASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# Of the pods of an indexed job, which are as many as the job says.
KUBERNETES_JOB = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
Told = TypeVar("Told")


def start() -> None:
    """Starts jax.distributed where several hosts work together; does nothing elsewhere.

    JAX finds the other processes by itself on Cloud TPU VMs, under Slurm and Open MPI, and in an
    indexed job of Kubernetes. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID for every process; CPUs then talk over gloo. Must run before anything asks
    for devices.

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
    try:
        jax.distributed.initialize(os.environ.get(ADDRESS), _number(COUNT), _number(NUMBER))
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise UserError(
            f"{launcher or ADDRESS}: the processes of this run do not find each other ({error});"
            f" set {ADDRESS} (host:port), {COUNT} and {NUMBER} for every process"
        ) from error


def _launcher() -> str | None:
    """What started several processes, or None where it is not known or there is one."""
    if os.environ.get("TPU_ML_PLATFORM") == "JAX":  # set by JAX itself on a Cloud TPU VM
        return "TPU"
    for name, variable in LAUNCHERS.items():
        if (_number(variable) or 1) > 1:
            return name
    return "Kubernetes" if all(name in os.environ for name in KUBERNETES_JOB) else None


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


def to_host(array: Any) -> np.ndarray:
    """The whole array on this host, also where its devices are of several; all have to call it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _broadcast(text: str) -> str:
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content), np.int32)))
    content = np.resize(content, size)  # what the others hold does not count
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)).decode()
