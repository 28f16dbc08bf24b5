"""Processes of one run on many hosts: their start, which one writes, and waiting for all."""

import os

import jax
from jax.experimental import multihost_utils


def start() -> None:
    """Starts jax.distributed where several hosts work together; does nothing elsewhere.

    On Cloud TPU VMs JAX finds the other hosts by itself. Elsewhere set JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for every process; CPUs then talk over gloo.
    Must run before anything asks for devices.
    """
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif os.environ.get("TPU_ML_PLATFORM") == "JAX":  # set by JAX itself on a Cloud TPU VM
        jax.distributed.initialize()


def is_main_process() -> bool:
    """Whether this process writes the files and the progress bar."""
    return jax.process_index() == 0


def wait_for_all(point: str) -> None:
    """Returns once every process of the run has come to this point; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)
