from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import end_to_end
import toy
from tables import nasbench201


def test_strings_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        arch = nasbench201.random_arch(rng)
        assert end_to_end.arch_of(nasbench201.to_sample(arch)) == arch


@pytest.mark.parametrize(("count", "size"), toy.SPACES)
def test_ours_is_better_than_nnis_and_random(count: int, size: int) -> None:
    results = {
        name: [toy.search(toy.TUNERS[name](seed), count, size, 100, seed) for seed in range(5)]
        for name in ("ours", "nni-tpe", "random")
    }
    means = {name: np.mean([score for score, _ in found]) for name, found in results.items()}
    assert means["ours"] > max(means["nni-tpe"], means["random"])
    assert all(repeated == 0 for _, repeated in results["ours"])
