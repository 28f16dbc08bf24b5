"""Several processes without any: which are found, what they have to agree on, how they end."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from rope_study import sharding
from rope_study.errors import UserError
from rope_study.sharding import ending, processes

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


PREFIXES = ("JAX_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "MEGASCALE_", "JOB_")


@pytest.fixture
def started(monkeypatch):
    """How jax.distributed was started, in an environment that says nothing of processes."""
    for name in os.environ:
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    calls = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *given, local_device_ids, **_: calls.append((given, local_device_ids)),
    )
    return calls


FOUND, ALL, BY_JAX = (None, None, None), [], None


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, []),
        ({"SLURM_NTASKS": "4"}, []),  # a script of sbatch, or a shell of salloc
        ({"SLURM_STEP_NUM_TASKS": "1"}, []),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, []),  # a pod that is no job of several
        (SLURM, [(FOUND, BY_JAX)]),  # a GPU a process
        (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, [(FOUND, ALL)]),
        (SLURM | {"SLURM_STEP_NUM_NODES": "4", "JAX_LOCAL_DEVICE_IDS": "0"}, [(FOUND, BY_JAX)]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, [(FOUND, BY_JAX)]),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, [(FOUND, ALL)]),  # given by --gpus-per-task
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, [(FOUND, ALL)]),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            [(FOUND, BY_JAX)],
        ),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, [(("a:1", None, None), BY_JAX)]),
        (JAX, [(("a:1", 2, 0), BY_JAX)]),
    ],
)
def test_processes_are_found(environment, expected, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sharding.start()
    assert started == expected


TPU = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
    "environment, starts",
    [
        (TPU, True),  # a Cloud TPU VM, whose metadata says how many there are
        (TPU | {"JAX_PLATFORMS": "cpu"}, False),
        (TPU | {"TPU_SKIP_MDS_QUERY": "1"}, False),  # no metadata: a notebook's TPU
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, True),  # Kubernetes
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        (TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),  # without chips
    ],
)
def test_tpu_hosts_are_found(environment, starts, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sharding.start()
    assert bool(started) == starts


@pytest.mark.parametrize(
    "environment, message",
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            "^JAX_COORDINATOR_ADDRESS set, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID: several",
        ),
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS='many' is no whole number"),
    ],
)
def test_a_half_set_environment_is_one_line(environment, message, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        sharding.start()
    assert not started


def test_processes_that_do_not_find_each_other_are_one_line(started, monkeypatch):
    def fail(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^Open MPI: .*\(coordinator_address .*; set JAX_COORD"):
        sharding.start()


def test_the_main_process_tells_what_it_found():
    assert sharding.on_main(lambda: [1, "a"]) == [1, "a"]
    np.testing.assert_array_equal(sharding.to_host(jax.numpy.arange(3)), [0, 1, 2])


def test_settings_that_differ_are_named(monkeypatch):
    texts = [json.dumps({"steps": steps, "seed": 0}) for steps in (5, 5, 6)]
    monkeypatch.setattr(processes, "_gather", lambda _: texts)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(UserError, match=r"^steps is 6 on process 2 and 5 on process 0: start"):
        sharding.check_same({})


# --- how all end ------------------------------------------------------------------------------


def looks(*processes, most=ending.SILENT + 5):
    """After how many looks there is a verdict, and which, where each process says the same on.

    A process is how it ends, None while it works, or "silent" from the first look on.
    """
    judge = ending.Judge(len(processes))
    for look in range(most):
        said = {
            process: json.dumps(
                {"host": f"h{process}", "beat": 0 if end == "silent" else look}
                | {"end": None if end in (None, "silent") else dataclasses.astuple(end)}
            )
            for process, end in enumerate(processes)
        }
        if verdict := judge.look(said):
            return look, *verdict
    return None


WRONG = ending.End(2, "error: wrong")


def test_all_are_done_once_the_last_is():
    assert looks(ending.DONE, ending.DONE) == (0, ending.DONE, 0)
    assert looks(ending.DONE, None) is None


def test_what_all_fail_with_is_said_once_and_at_once():
    assert looks(WRONG, WRONG, WRONG) == (0, WRONG, 0)


def test_what_one_fails_with_ends_all_and_names_it():
    named = ending.End(2, "process 1 of 2 (host h1): error: wrong")
    assert looks(None, WRONG) == (ending.GRACE, named, 1)


def test_a_silent_process_is_gone_sooner_where_the_program_of_another_failed():
    gone = ending.gone("process 1 of 3 (host h1)")
    assert looks(None, "silent", None) == (ending.SILENT, gone, 1)
    closed = ending.End(1, "error: connection closed by peer", doubtful=True)
    assert looks(closed, "silent", None) == (ending.SUSPECT, gone, 1)
    look, end, process = looks(closed, None, None)  # nobody is gone: it is its own error
    assert ending.SUSPECT < look < 2 * ending.SUSPECT and (end, process) == (closed, 0)


@pytest.mark.eight_devices
def test_rows_are_made_once_for_all_devices_that_hold_them():
    layout = sharding.make_layout("data=2,fsdp=1,tensor=4")
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return np.arange(start, stop)[:, None]

    placed = layout.place_rows(rows, (8, 1))
    np.testing.assert_array_equal(placed[:, 0], np.arange(8))
    assert sorted(asked) == [(0, 4), (4, 8)]
