"""Training over 1, 2 and more GPUs of one host: how much of their speed is kept, and what it costs.

    python benchmarks/scaling.py --out=results/scaling.json            # on a host with GPUs
    python benchmarks/scaling.py --table=results/scaling.json          # Markdown of what it holds
    python benchmarks/scaling.py --small --gpus=4 --out=scaling.json   # tries all rows on a CPU

Weak scaling: the same batch a GPU; strong: the same in all. Every row is a process of its own, or
one a GPU, that sees only its GPUs. Rows start in the order of `table`, the most wanted first, side
by side where enough GPUs are free, and none after --seconds; each is written when it is done. Rows
that --out holds are not run again. What a row runs and measures is in scaling_row.py.
"""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling_row import Row

LIMIT = 110  # seconds that a row may take
LONG = 32_768  # tokens


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="A JSON file to add the rows to.")
    parser.add_argument("--table", type=Path, help="Print what this JSON file holds.")
    parser.add_argument("--gpus", type=int, default=4, choices=[2, 4, 8])
    parser.add_argument("--seconds", type=float, default=540, help="For all rows.")
    parser.add_argument("--small", action="store_true", help="Tiny sizes on fake devices.")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(json.loads(arguments.table.read_text())))
        return
    if not arguments.out:
        parser.error("--out or --table is needed")
    rows = table(arguments.gpus)
    rows = [dataclasses.replace(row, small=arguments.small) for row in rows]
    run_all(rows, arguments.gpus, arguments.seconds, arguments.out)
    print(markdown(json.loads(arguments.out.read_text())))


def table(gpus: int) -> list[Row]:
    """All rows for so many GPUs, in the order in which they start."""

    def step(model: str, devices: int, mesh: str = "fsdp=-1", scaling: str = "weak", **more) -> Row:
        a_device = 1 if "length" in more else {"gemma_2b": 4, "82M": 16}[model]
        batch = a_device * (devices if scaling == "weak" else 1)
        return Row("step", model, devices, batch, mesh=mesh, scaling=scaling, **more)

    one = [Row("step", "gemma_2b", 1, 4), Row("step", "82M", 1, 16)]
    long = Row("step", "gemma_2b", 1, 1, length=LONG)
    data, tensor, context = "data=2,fsdp=-1", "fsdp=-1,tensor=2", "fsdp=-1,context=2"
    between = [n for n in (2, 4) if n < gpus]
    return [
        *one,
        *(step("gemma_2b", n) for n in between),
        step("gemma_2b", gpus),
        step("gemma_2b", gpus, scaling="strong"),
        step("gemma_2b", gpus, data),
        step("gemma_2b", gpus, tensor),
        long,
        step("gemma_2b", 2, context, length=LONG),
        step("gemma_2b", gpus, context, length=LONG),
        step("82M", gpus),
        Row("side by side", "82M", gpus, 16, processes=gpus),
        step("82M", gpus, "data=-1", "strong"),
        step("gemma_2b", gpus, processes=gpus),
        Row("save", "82M", gpus, 16),
        Row("restore", "82M", 1, 16),
        *(Row("restore", "82M", n, 16) for n in between),
        Row("restore", "82M", gpus, 16),
        step("82M", gpus, scaling="strong"),
        step("gemma_2b", gpus, data, "strong"),
        step("gemma_2b", gpus, tensor, "strong"),
        *(step("gemma_2b", n, scaling="strong") for n in between),
        *(step("82M", n) for n in between),
        *(step("82M", n, scaling="strong") for n in between),
        step("gemma_2b", 2, context, "strong", length=LONG),
        step("82M", gpus, data),
        step("82M", gpus, data, "strong"),
        step("82M", gpus, processes=gpus),
        step("gemma_2b", gpus, f"context={gpus}", "strong", length=LONG),
        *(step("gemma_2b", n, tensor) for n in between),
    ]


# --- running ----------------------------------------------------------------------------------


class Job:
    """A row that runs on these GPUs: its processes, and what they print."""

    def __init__(self, row: Row, gpus: list[int], folder: Path):
        self.row, self.gpus, self.begun = row, gpus, time.monotonic()
        self._printed = [tempfile.TemporaryFile("w+") for _ in range(row.processes)]
        address = _free_address()
        program = Path(__file__).with_name("scaling_row.py")
        command = [sys.executable, program, json.dumps(dataclasses.asdict(row)), folder]
        self._all = [
            subprocess.Popen(
                [*command, str(number)],
                env=_environment(row, gpus, number, address, folder),
                stdout=printed,
                stderr=printed,
            )
            for number, printed in enumerate(self._printed)
        ]

    def poll(self, limit: float) -> dict | None:
        """The measured row, or what went wrong; None while it runs. Past the limit it is ended."""
        statuses = [process.poll() for process in self._all]
        seconds = time.monotonic() - self.begun
        if statuses == [0] * len(statuses):
            measured = [self._measured(number) for number in range(len(statuses))]
            both = {"seconds_in_all": seconds}
            if self.row.kind == "side by side":
                both["tokens_per_second"] = sum(run["tokens_per_second"] for run in measured)
            return dataclasses.asdict(self.row) | measured[0] | both
        failed = [number for number, status in enumerate(statuses) if status not in (None, 0)]
        if not failed and seconds < limit:
            return None
        for process in self._all:
            process.kill()
            process.wait()
        lines = self._text(failed[0] if failed else 0)
        said = next((line for line in lines[::-1] if "rror" in line), lines[-1])
        error = said if failed else f"ended after {seconds:.0f} s; last line: {lines[-1]}"
        return dataclasses.asdict(self.row) | {"error": error[:400], "lines": lines[-30:]}

    def _measured(self, number: int) -> dict:
        """What a process measured; those of several may log after it when they end."""
        printed = self._text(number)
        return json.loads(next((line for line in printed[::-1] if line[:1] == "{"), "{}"))

    def _text(self, number: int) -> list[str]:
        self._printed[number].seek(0)
        return self._printed[number].read().splitlines() or [""]


def _environment(
    row: Row, gpus: list[int], number: int, address: str, folder: Path
) -> dict[str, str]:
    """Of one process: which devices it sees, and where the others of its run are."""
    share = len(gpus) // row.processes
    seen = gpus[number * share : (number + 1) * share]
    added = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, seen))}
    if row.small:
        added |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(share)}
    if row.processes > 1 and row.kind != "side by side":
        added |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(row.processes),
                  "JAX_PROCESS_ID": str(number)}  # fmt: skip
    shared = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}  # compiling is not timed
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | os.environ | shared | added


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run_all(rows: list[Row], gpus: int, seconds: float, out: Path) -> None:
    """Runs rows in their order until the time is over; `out` holds what is done."""
    measured = json.loads(out.read_text()) if out.exists() else []
    measured = [row for row in measured if "error" not in row]
    waiting = [row for row in rows if row.kind == "save" or not _holds(measured, row)]
    free, running, end = list(range(gpus)), [], time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            row = waiting[0] if waiting else None
            after_save = any(job.row.kind == "save" for job in running)  # a restore waits for it
            if row and len(free) >= row.devices and not after_save and time.monotonic() < end - 20:
                running.append(Job(row, free[: row.devices], Path(folder)))
                free, waiting = free[row.devices :], waiting[1:]
                continue
            if row and time.monotonic() >= end - 20:
                print(f"no time for {len(waiting)} rows, from {row} on", file=sys.stderr)
                waiting = []
            time.sleep(0.1)
            for job in list(running):
                done = job.poll(min(LIMIT, max(1, end - job.begun)))
                if done is not None:
                    running.remove(job)
                    free += job.gpus
                    measured = [old for old in measured if not _holds([old], job.row)] + [done]
                    out.write_text(json.dumps(with_kept(measured), indent=1) + "\n")
                    print(_line(done), file=sys.stderr, flush=True)


def with_kept(rows: list[dict]) -> list[dict]:
    """Rows with their share of the speed of one GPU, on windows of the same length."""
    steps = [row for row in rows if row["kind"] == "step" and "error" not in row]
    alone = {(r["model"], r["length"]): r["tflops_a_device"] for r in steps if r["devices"] == 1}
    for row in steps:
        if one := alone.get((row["model"], row["length"])):
            row["kept"] = row["tflops_a_device"] / one
    return rows


def _holds(measured: list[dict], row: Row) -> bool:
    about = dataclasses.asdict(row)
    return any(about.items() <= old.items() for old in measured)


# --- what was measured ------------------------------------------------------------------------


def _line(row: dict) -> str:
    """A row in brief, when it is done."""
    about = [str(row[name]) for name in ("kind", "model", "devices", "mesh", "scaling", "length")]
    if "error" in row:
        return " ".join(about) + ": " + row["error"]
    speed = f"{row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else ""
    return f"{' '.join(about)}: {speed or row['losses']}, {row['seconds_in_all']:.0f} s in all"


def markdown(rows: list[dict]) -> str:
    """The tables of all rows, and last what failed."""
    by_kind = {
        kind: [row for row in rows if row["kind"] == kind and "error" not in row]
        for kind in ("step", "side by side", "save", "restore")
    }
    failed = [_line(row) for row in rows if "error" in row]
    parts = [*_steps(by_kind["step"]), "", *_side_by_side(by_kind), "", *_restored(by_kind)]
    device = {f"{row['device']}, jax {row['jax']}" for row in rows if "device" in row}
    return "\n".join([", ".join(sorted(device)), "", *parts, *failed])


def _steps(rows: list[dict]) -> list[str]:
    """Speeds, and shares of one GPU's speed and of the time."""
    lines = [
        "| model | GPUs | mesh | scaling | windows | tokens/s | TFLOP/s a GPU | kept | GiB a GPU |"
        " in collectives | of it alone |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = ("model", "length", "scaling", "mesh", "devices", "processes")
    for row in sorted(rows, key=lambda row: [row[name] for name in order]):
        gpus = f"{row['devices']}, a process each" if row["processes"] > 1 else row["devices"]
        mesh = row["mesh"].replace("=-1", "") if row["devices"] > 1 else ""
        shares = ("kept", "collectives", "exposed")
        kept, *traced = [f"{row[name]:.3f}" if name in row else "" for name in shares]
        cells = [
            row["model"], gpus, mesh, row["scaling"], f"{row['batch']} x {row['length']:,}",
            f"{row['tokens_per_second']:,.0f}", f"{row['tflops_a_device']:.1f}", kept,
            f"{row['gib_a_device']:.1f}", *traced,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _side_by_side(by_kind: dict[str, list[dict]]) -> list[str]:
    """Runs on a GPU each beside the same runs in turn over all."""
    lines = []
    for row in by_kind["side by side"]:
        lines.append(
            f"{row['devices']} runs of {row['model']} side by side, one a GPU:"
            f" {row['tokens_per_second']:,.0f} tokens/s in all;"
        )
        for over in by_kind["step"]:
            same = [over[name] == row[name] for name in ("model", "devices", "batch", "length")]
            if all(same) and over["processes"] == 1:
                mesh, speed = over["mesh"].replace("=-1", ""), over["tokens_per_second"]
                lines.append(f"one after another over all ({mesh}): {speed:,.0f} tokens/s.")
    return lines


def _restored(by_kind: dict[str, list[dict]]) -> list[str]:
    """The next losses after a checkpoint, on as many GPUs as it is read on."""
    lines = []
    for saved in by_kind["save"]:
        lines += ["| checkpoint | next losses | largest difference |", "|---|---|---|"]
        for row in [saved, *sorted(by_kind["restore"], key=lambda row: row["devices"])]:
            pairs = zip(row["losses"], saved["losses"], strict=True)
            difference = max(abs(mine - theirs) for mine, theirs in pairs)
            losses = ", ".join(f"{loss:.6f}" for loss in row["losses"])
            what = {"save": "saved on", "restore": "read on"}[row["kind"]]
            shown = "" if row is saved else f"{difference:.1e}"
            lines.append(f"| {what} {row['devices']} | {losses} | {shown} |")
    return lines


if __name__ == "__main__":
    main()
