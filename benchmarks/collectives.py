"""How much of a traced time GPUs spend on exchanges with each other, and how much of it alone.

An exchange begins when its own device comes to it: waiting for slower devices counts.
"""

import collections
from pathlib import Path

import jax
import numpy as np
from jax.profiler import ProfileData

NAMES = ("nccl",)  # in the names of kernels that exchange
Intervals = np.ndarray  # float64[n, 2] of starts and ends in nanoseconds, apart and in order


def trace(folder: Path) -> None:
    """Starts a trace into a folder; jax.profiler.stop_trace() ends it."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the host down
    jax.profiler.start_trace(folder, profiler_options=options)


def shares(folder: Path) -> dict:
    """What a trace says of collectives, the mean over its GPUs; nothing where there is none.

    Returns:
      collectives: the share of the time, from the first kernel to the last, with an exchange.
      exposed: the share with an exchange and nothing beside it.
      idle: the share with nothing.
      kernels: names of what counted as an exchange.
      longest: of what did not, those that took most, and their nanoseconds on one GPU.
    """
    (path,) = folder.rglob("*.xplane.pb")
    return shares_of(ProfileData.from_file(str(path)))


def shares_of(profile: ProfileData) -> dict:
    """As `shares`, of a profile."""
    devices, names, longest = [], set(), collections.Counter()
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        kernels = [  # other lines of a device say the same by operation, module and step
            (event.name, event.start_ns, event.end_ns)
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
        if not kernels:  # a device of another process
            continue
        names |= {name for name, *_ in kernels if _exchanges(name)}
        longest = collections.Counter()
        for name, start, end in kernels:
            if not _exchanges(name):
                longest[name[:60]] += end - start
        exchanges = _union([span for name, *span in kernels if _exchanges(name)])
        others = _union([span for name, *span in kernels if not _exchanges(name)])
        both = _union([*exchanges, *others])
        time = both[-1, 1] - both[0, 0]
        alone = _length(both) - _length(others)
        devices.append([_length(exchanges) / time, alone / time, 1 - _length(both) / time])
    if not devices:
        return {}
    collectives, exposed, idle = np.mean(devices, axis=0)
    shown = sorted(name[:60] for name in names)
    return {
        "collectives": collectives, "exposed": exposed, "idle": idle, "kernels": shown,
        "longest": dict(longest.most_common(8)),
    }  # fmt: skip


def _exchanges(name: str) -> bool:
    return any(part in name.lower() for part in NAMES)


def _union(spans: list) -> Intervals:
    """The time in any of the spans."""
    merged: list[list[float]] = []
    for start, end in sorted(map(tuple, spans)):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, float).reshape(-1, 2)


def _length(spans: Intervals) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())
