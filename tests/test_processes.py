"""Starting several processes: what is found by itself, and a half-set environment in one line."""

import jax
import numpy as np
import pytest

from rope_study import sharding
from rope_study.errors import UserError
from rope_study.sharding import processes

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.fixture
def started(monkeypatch):
    """The arguments that jax.distributed was started with, in an environment without any."""
    for name in (*processes.LAUNCHERS.values(), *processes.KUBERNETES_JOB, "TPU_ML_PLATFORM",
                 processes.ADDRESS, processes.COUNT, processes.NUMBER):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, []),
        ({"SLURM_NTASKS": "1"}, []),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, []),  # a pod that is no job of several
        (SLURM, [(None, None, None)]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, [(None, None, None)]),
        ({"TPU_ML_PLATFORM": "JAX"}, [(None, None, None)]),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            [(None, None, None)],
        ),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, [("a:1", None, None)]),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
            },
            [("a:1", 2, 0)],
        ),
    ],
)
def test_processes_are_found(environment, expected, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sharding.start()
    assert started == expected


@pytest.mark.parametrize(
    "environment, message",
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            "^JAX_COORDINATOR_ADDRESS set, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID: several",
        ),
        ({"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS='many' is no whole number"),
    ],
)
def test_a_half_set_environment_is_one_line(environment, message, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        sharding.start()
    assert not started


def test_processes_that_do_not_find_each_other_are_one_line(started, monkeypatch):
    def fail(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^Open MPI: .*\(coordinator_address .*; set JAX_COORD"):
        sharding.start()


def test_the_main_process_tells_what_it_found():
    assert sharding.on_main(lambda: [1, "a"]) == [1, "a"]
    np.testing.assert_array_equal(sharding.to_host(jax.numpy.arange(3)), [0, 1, 2])


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
