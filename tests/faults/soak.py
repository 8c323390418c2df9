"""A long experiment of stub trials through ``nnictl``: memory, proposal times, and whether anything is lost.

    python tests/faults/soak.py --trials 1000 --out DIR

Every few seconds a row goes to ``DIR/soak.csv``; the summary is printed and is ``DIR/soak.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from stub import Stub

from nni_cssnas.errors import ExperimentError

COLUMNS = ("seconds", "trials", "manager_mb", "tuner_mb", "manager_files", "tuner_files", "load")
WARM = 200
"""Trials after which memory must be flat."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two rows")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        found = soak(options.trials, Path(home), options.out / "soak.csv", options.interval)
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        print(f"{name}: {value}")
    return 1 if found["lost"] or found["repeated"] or found["wrong"] else 0


def soak(trials: int, home: Path, table: Path, interval: float) -> dict[str, Any]:
    """Run the experiment, write a row now and then, and judge it."""
    stub = Stub.start(home / "code", home / "nni-experiments", trials=trials, seconds=0.1, timed=True)
    begun = time.monotonic()
    rows: list[dict[str, float]] = []
    try:
        manager, tuner = stub.processes("manager")[0], _worker(stub.processes("tuner"))
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            while not rows or _runs(stub):
                rows.append(_row(stub, manager, tuner, time.monotonic() - begun))
                writer.writerow(rows[-1])
                file.flush()
                time.sleep(interval)
        verdict = stub.verdict()
        verdict.wrong += stub.listing()
        last = stub.experiment.progress()
        proposals = [1000 * float(line) for line in (stub.folder / "checkpoint/proposals.txt").read_text().split()]
    finally:
        stub.end()
    return {
        "status": last.status,
        "trials": verdict.facts["finished"],
        "failed": last.failed + last.stopped,
        "lost": verdict.lost,
        "repeated": verdict.repeated,
        "wrong": verdict.wrong,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        **_memory(rows, "manager"),
        **_memory(rows, "tuner"),
        "proposals": len(proposals),
        "proposal_ms_median": round(statistics.median(proposals), 2),
        "proposal_ms_p99": round(float(np.percentile(proposals, 99)), 2),
        "proposal_ms_max": round(max(proposals), 2),
        "load_median": statistics.median(row["load"] for row in rows),
    }


def _worker(processes: list[psutil.Process]) -> psutil.Process:
    """The tuner itself, where NNI started it through a shell."""
    return max(processes, key=lambda process: process.memory_info().rss)


def _runs(stub: Stub) -> bool:
    try:
        return not stub.experiment.progress().ended
    except ExperimentError as error:
        print(f"{time.strftime('%H:%M:%S')} {error}", file=sys.stderr)
        return bool(stub.processes("manager"))


def _row(stub: Stub, manager: psutil.Process, tuner: psutil.Process, seconds: float) -> dict[str, float]:
    return {
        "seconds": round(seconds, 1),
        "trials": stub.finished(),
        "manager_mb": round(manager.memory_info().rss / 1e6, 1),
        "tuner_mb": round(tuner.memory_info().rss / 1e6, 1),
        "manager_files": manager.num_fds(),
        "tuner_files": tuner.num_fds(),
        "load": os.getloadavg()[0],
    }


def _memory(rows: list[dict[str, float]], kind: str) -> dict[str, float]:
    """Megabytes after the first trials and at the end, and the slope in between."""
    warm = [row for row in rows if row["trials"] >= WARM] or rows
    trials, used = [row["trials"] for row in warm], [row[f"{kind}_mb"] for row in warm]
    slope = float(np.polyfit(trials, used, 1)[0]) * 1000 if len(set(trials)) > 1 else 0.0
    return {
        f"{kind}_mb_after_{WARM}": used[0],
        f"{kind}_mb_at_end": used[-1],
        f"{kind}_mb_max": max(used),
        f"{kind}_mb_per_1000_trials": round(slope, 1),
        f"{kind}_files_at_end": warm[-1][f"{kind}_files"],
    }


if __name__ == "__main__":
    sys.exit(main())
