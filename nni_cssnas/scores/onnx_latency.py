#!/usr/bin/env python3
"""Measure layers and networks on this machine. Needs numpy and onnxruntime, and nothing else.

    python measure.py

runs the .onnx files beside it and writes latency.json, which is to be carried back to the machine that searches:
nni-cssnas screen ... --latency latency.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PASSES, WARMUP = 40, 3


def in_turn(runs: Sequence[Callable[[], object]], passes: int = PASSES, seed: int = 0) -> list[float]:
    """Median milliseconds of each run, where all are run in a new order again and again.

    A layer that is run alone, over and over, finds its weights and inputs in the cache, and is faster than it is in a
    network, where other layers run in between. What disturbs the machine for a while disturbs all alike.
    """
    order = list(range(len(runs)))
    shuffle = random.Random(seed).shuffle
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(WARMUP + passes):
        shuffle(order)
        for index in order:
            start = time.perf_counter()
            runs[index]()
            passed = time.perf_counter() - start
            if turn >= WARMUP:
                times[index].append(1e3 * passed)
    return [statistics.median(some) for some in times]


def processor() -> str:
    """The name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def main() -> int:
    """Measure what ``plan.json`` names."""
    import numpy as np
    import onnxruntime

    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime, as CUDAExecutionProvider")
    parser.add_argument("--threads", type=int, default=0, help="0: as onnxruntime chooses")
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("-o", "--output", type=Path, default=here / "latency.json")
    args = parser.parse_args()
    if args.provider not in onnxruntime.get_available_providers():
        print(
            f"error: --provider is {args.provider!r}; here are {onnxruntime.get_available_providers()}", file=sys.stderr
        )
        return 2
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads

    def runner(name: str) -> Callable[[], object]:
        session = onnxruntime.InferenceSession(str(here / name), options, providers=[args.provider])
        [given] = session.get_inputs()
        images = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
        return lambda: session.run(None, {given.name: images})

    plan = json.loads((here / "plan.json").read_text(encoding="utf-8"))
    # All in turn: what disturbs the machine for a while disturbs layers and networks alike.
    items = [plan["empty"], *plan["pieces"], *plan["networks"]]
    # An old Python of a small machine knows no strict zip.
    for item, ms in zip(items, in_turn([runner(item["file"]) for item in items], args.passes)):  # noqa: B905
        item["ms"] = ms
    device = processor() if args.provider == "CPUExecutionProvider" else f"{args.provider} on {processor()}"
    plan.update(device=device, runtime=f"onnxruntime {onnxruntime.__version__}", threads=args.threads)
    args.output.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output}: {len(plan['pieces'])} layers and {len(plan['networks'])} networks on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
