"""The benchmark of screening on Ray, small: each part does what it measures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import ray_overhead


def test_the_simulation_at_its_bounds() -> None:
    # A main process that costs nothing: all workers always work, but for the last round.
    busy, used = ray_overhead.simulate(10, 10_000, 0.1, 10, 0.0, 0.0)
    assert busy == 0
    assert used == pytest.approx(1.0)
    # One that is the bottleneck is busy all the time, and serves 1 / (item + batch / size) architectures a second.
    busy, used = ray_overhead.simulate(64, 100_000, 0.01, 10, 0.002, 0.001)
    assert busy == pytest.approx(1.0, abs=0.01)
    assert used == pytest.approx((1 / (0.001 + 0.002 / 10)) * 0.01 / 64, rel=0.02)
    # Far below that, it works for its cost of each architecture.
    busy, used = ray_overhead.simulate(8, 100_000, 0.1, 10, 0.001, 0.0001)
    assert busy == pytest.approx(8 / 0.1 * (0.0001 + 0.001 / 10), rel=0.02)
    assert used == pytest.approx(1.0, abs=0.01)


def test_larger_batches_keep_the_main_process_idle() -> None:
    found = [ray_overhead.simulate(64, 100_000, 0.3, size, 0.002, 0.0002)[0] for size in (1, 5, 20, 100)]
    assert found == sorted(found, reverse=True)


def test_on_paper_needs_times_and_prints_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ray_overhead.main(["--parts", "paper"])
    assert ray_overhead.main(["--short", "--parts", "paper", "--driver-cost", "1", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert (
        len(re.findall(r"s each, batches of \d+: the main process is busy [\d.]+% .* the GPUs [\d.]+%", printed)) == 12
    )


@pytest.mark.slow
def test_a_search_that_is_in_its_log_is_not_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert ray_overhead.main(["--short", "--parts", "resume"]) == 0
    assert re.search(r"^resume: seconds [\d.]+, grown by MB [\d.]+, peak MB", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.integration
def test_the_parts_that_need_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["overhead", "stub", "driver"]
    assert ray_overhead.main(["--short", "--parts", *parts]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{part}: .* [\d.]+", printed, re.MULTILINE) for part in parts)
