"""benchmarks/collectives.py: shares of time in a trace that is written here."""

import importlib.util
from pathlib import Path

import pytest
from jax.profiler import ProfileData

FILE = Path(__file__).parents[1] / "benchmarks" / "collectives.py"
GEMM, GATHER = "gemm", "ncclDevKernel_AllGather_RING_LL"


def plane(number, name, lines):
    """A device's part of a trace: {line: [(kernel, start, end)]} in nanoseconds."""
    kernels = [GEMM, GATHER]
    text = f'planes {{ id: {number} name: "{name}"'
    for line, events in lines.items():
        text += f' lines {{ name: "{line}" timestamp_ns: 1000'
        for kernel, start, end in events:
            text += f" events {{ metadata_id: {kernels.index(kernel) + 1}"
            text += f" offset_ps: {start}000 duration_ps: {end - start}000 }}"
        text += " }"
    for key, kernel in enumerate(kernels, start=1):
        text += f' event_metadata {{ key: {key} value {{ id: {key} name: "{kernel}" }} }}'
    return text + " }"


def shares_of(*planes):
    spec = importlib.util.spec_from_file_location("collectives", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    serialized = ProfileData.text_proto_to_serialized_xspace(" ".join(planes))
    return module.shares_of(ProfileData.from_serialized_xspace(serialized))


def test_shares_of_time_are_the_mean_over_gpus():
    first = {
        "Stream #1(Compute)": [(GEMM, 0, 40), (GEMM, 60, 90)],
        "Stream #2": [(GATHER, 30, 50), (GATHER, 45, 60)],  # 20 of 30 alone, and no pause
        "XLA Ops": [(GATHER, 0, 200)],  # the same once more, by operation
    }
    second = {
        "Stream #1(Compute)": [(GEMM, 0, 40), (GEMM, 50, 100)],  # 10 of 100 with nothing
        "Stream #2": [(GATHER, 0, 20)],
    }
    shares = shares_of(
        plane(1, "/device:GPU:0", first),
        plane(2, "/host:CPU", {"Stream": [(GATHER, 0, 500)]}),
        plane(3, "/device:GPU:1", second),
        plane(4, "/device:GPU:2", {}),  # of another process
    )
    assert shares["collectives"] == pytest.approx((30 / 90 + 20 / 100) / 2)
    assert shares["exposed"] == pytest.approx((20 / 90 + 0) / 2)
    assert shares["idle"] == pytest.approx((0 + 10 / 100) / 2)
    assert shares["kernels"] == [GATHER] and shares["longest"] == {GEMM: 90}


def test_a_trace_without_gpus_says_nothing():
    assert shares_of(plane(1, "/host:CPU", {"Stream": [(GATHER, 0, 500)]})) == {}
