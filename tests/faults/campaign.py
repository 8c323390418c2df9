"""Inject faults by a fixed seed and ask after each whether anything was lost, repeated, swapped, hung or unclear.

python tests/faults/campaign.py --faults 1000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import image_faults
import running_faults
import text_faults
import training_faults
from counting import Campaign

LONG = 1000
"""Faults of the long campaign, about; the sizes of the groups are those of that."""


def run(faults: int, seed: int, folder: Path, *, running: bool = True) -> Campaign:
    """A campaign of about so many faults."""
    campaign = Campaign(folder, seed, partial(print, flush=True))
    scale = faults / LONG
    text_faults.inject_all(campaign, scale)
    image_faults.inject_all(campaign, scale)
    training_faults.inject_all(campaign, scale)
    if running:
        running_faults.inject_all(campaign, scale)
    return campaign


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=LONG, help="about so many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-process", action="store_true", help="start no experiment")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        campaign = run(options.faults, options.seed, Path(folder), running=not options.in_process)
    print(campaign.table())
    return 1 if campaign.bad else 0


if __name__ == "__main__":
    sys.exit(main())
