#!/usr/bin/env python3
"""How long does the report of a large search take, and how large is it?

    python experiments/benchmarks/report.py --trials 500

writes the records of so many random architectures, as trials leave them, and prints seconds and megabytes of their report.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nni_cssnas.config import ProxyConfig
from nni_cssnas.results.records import TrialRecord
from nni_cssnas.results.report import write_report
from nni_cssnas.spaces import CellSpace, decode, random_choices


def write_records(folder: Path, trials: int) -> None:
    """Random architectures with made-up scores and loss curves; one in fifty failed."""
    space = CellSpace(num_nodes=5, num_cells=8, channels=2)
    rng = np.random.default_rng(0)
    config = ProxyConfig(score="contrastive").model_dump(mode="json")
    for number in range(trials):
        parameters = random_choices(space, rng)
        drop = float(rng.random())
        failed = number % 50 == 49
        record = TrialRecord(
            experiment="benchmark",
            trial=f"T{number}",
            sequence=number,
            parameter_id=number,
            parameters=parameters,
            genotype=space.genotype_of(decode(space, parameters)).to_dict(),
            seed=number,
            status="failed" if failed else "succeeded",
            score=None if failed else drop,
            components={}
            if failed
            else {"loss": 5 - drop, "drop": drop, "macs": float(rng.integers(10**6, 10**7)), "params": 5e4},
            epoch_losses=[] if failed else list(5 - drop * np.linspace(0, 1, 20)),
            error=f"contrastive loss is nan at step {number}; lower lr" if failed else None,
            config=config,
            environment={"device": "cpu", "versions": {"torch": "2"}},
            started=1.7e9 + 30 * number,
            duration=29.0,
        )
        trial = folder / "environments" / "local-env" / "trials" / record.trial
        record.write(trial)
        (trial / "trial.log").write_text("")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder, args.trials)
        start = time.perf_counter()
        write_report(folder, folder / "report.html")
        seconds = time.perf_counter() - start
        text = (folder / "report.html").read_text(encoding="utf-8")
        size = len(text.encode())
        if (rows := text.count("<tr>")) < args.trials:
            raise RuntimeError(f"the report has {rows} rows for {args.trials} trials: it is not whole")
    print(f"{args.trials} trials: {seconds:.1f} s, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
