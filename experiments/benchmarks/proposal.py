#!/usr/bin/env python3
"""How long does a proposal take when thousands of trials are finished, and how much memory do they need?

    python experiments/benchmarks/proposal.py --trials 5000

prints for our TPE, with one objective and with three, our hyperopt tuner and, as the other side, ``hyperopt.tpe.suggest`` on the same trials: milliseconds
of processor time for one proposal in the quickstart's space (median of 20), and by how many megabytes the process grew.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SPACE = Path(__file__).resolve().parents[1] / "quickstart" / "search_space.json"


def measure(propose: Callable[[int], Any]) -> float:
    """Median milliseconds of processor time."""
    times = []
    for number in range(20):
        start = time.process_time()
        proposed = propose(number)
        times.append(time.process_time() - start)
        if not proposed:
            raise RuntimeError(f"call {number} proposed nothing: nothing was measured")
    return 1000 * float(np.median(times))


def megabytes() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    args = parser.parse_args(arguments)
    import hyperopt

    from nni_cssnas.tuners.hyperopt import Hyperopt, hyperopt_space
    from nni_cssnas.tuners.tpe import Tpe

    space = json.loads(SPACE.read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    drawn = [{name: int(rng.integers(len(spec["_value"]))) for name, spec in space.items()} for _ in range(args.trials)]
    scores = rng.random(args.trials).tolist()
    data = [
        {"parameter": {name: space[name]["_value"][index] for name, index in choices.items()}, "value": score}
        for choices, score in zip(drawn, scores, strict=True)
    ]
    # All trials of the second are on the front, the most work there can be.
    points = np.abs(rng.normal(size=(args.trials, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    names = ("default", "params", "macs")
    on_front = [
        item | {"value": dict(zip(names, point.tolist(), strict=True))}
        for item, point in zip(data, points, strict=True)
    ]
    three = dict.fromkeys(names, "maximize")
    tuners: list[tuple[str, Any, list[dict[str, Any]]]] = [
        ("Tpe", lambda: Tpe(seed=0), data),
        ("Tpe, three objectives", lambda: Tpe(seed=0, objectives=three), on_front),
        ("Hyperopt", lambda: Hyperopt(seed=0), data),
    ]
    for name, make, trials_of_it in tuners:
        before = megabytes()
        tuner = make()
        tuner.update_search_space(space)
        tuner.import_data(trials_of_it)
        spent = measure(tuner.generate_parameters)
        print(f"{name}: {spent:.0f} ms a proposal, {megabytes() - before:.0f} MB for {args.trials} trials")
    before = megabytes()
    domain = hyperopt.Domain(lambda _: 0.0, hyperopt_space(space))
    documents = [
        {
            "tid": number,
            "spec": None,
            "result": {"status": hyperopt.STATUS_OK, "loss": -score},
            "misc": {
                "tid": number,
                "cmd": domain.cmd,
                "workdir": None,
                "idxs": {name: [number] for name in choices},
                "vals": {name: [index] for name, index in choices.items()},
            },
            "state": hyperopt.JOB_STATE_DONE,
            "exp_key": None,
            "owner": None,
            "version": 0,
            "book_time": None,
            "refresh_time": None,
        }
        for number, (choices, score) in enumerate(zip(drawn, scores, strict=True))
    ]
    trials = hyperopt.trials_from_docs(documents, validate=False)
    spent = measure(lambda number: hyperopt.tpe.suggest([args.trials + number], domain, trials, number, verbose=False))
    print(f"hyperopt.tpe.suggest: {spent:.0f} ms a proposal, {megabytes() - before:.0f} MB")
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
