"""Every part of the speed benchmark in its short form: it runs, and does what it says that it times."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import speed
import view_peers
from rich.console import Console

LONG = {"epoch", "growth", "memory", "screening", "start"}
LINES = {"views": 3, "epoch": 5, "loss": 2, "start": 3, "memory": 2, "screening": 3, "growth": 2}
"""How many comparisons each part makes in its short form."""


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.slow] * (part in LONG)) for part in speed.PARTS]
)
def test_every_part_times_something(part: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    assert speed.main(["--short", "--parts", part, "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["short"] is True
    assert len(found["lines"]) == LINES[part]
    for line in found["lines"]:
        assert line["part"] == part
        numbers = [line[name] for name in ("ours", "other", "ratio") if name in line]
        assert numbers
        assert all(math.isfinite(number) and number > 0 for number in numbers)


class Fake:
    """A screener that starts no process; ``explore`` is replaced too."""

    def spread(self, workers: int) -> Any:
        return nullcontext()


@pytest.mark.parametrize(
    ("components", "number", "message"),
    [({"macs": 1.0}, 3, None), ({"macs": 1.0}, 4, "3 architectures of 4"), ({}, 3, "0 architectures of 3")],
)
def test_screening_without_scores_is_no_speed(
    monkeypatch: pytest.MonkeyPatch, components: dict[str, float], number: int, message: str | None
) -> None:
    from nni_cssnas.judge.screening import Screened

    monkeypatch.setattr(speed, "explore", lambda *args, **kwargs: iter([Screened({}, -1.0, components)] * 3))
    found: Any = Fake()
    if message is None:
        assert speed.screen(found, number, 0) > 0
    else:
        with pytest.raises(RuntimeError, match=message):
            speed.screen(found, number, 0)


def test_views_that_are_not_made_are_no_speed() -> None:
    bench = speed.Bench(1, torch.device("cpu"), Console(quiet=True))
    images = torch.zeros(2, 3, 4, 4)
    assert speed.draw(bench, lambda x, generator: (x, x), images, torch.Generator()) >= 0
    with pytest.raises(RuntimeError, match=r"2 images gave \[1, 2\] views"):
        speed.draw(bench, lambda x, generator: (x[:1], x), images, torch.Generator())


def test_what_screens_uses_the_default_score() -> None:
    assert speed.screener(images={"num_images": 64}).config.score == "untrained"


@pytest.mark.parametrize("make", [view_peers.torchvision_views, view_peers.kornia_views])
def test_the_views_of_other_libraries_are_views(make: Any) -> None:
    config = speed.ViewsConfig(rr_prob=0.5, rr_degrees=30.0, vf_prob=0.5)
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    first, second = make(config, 16)(images, torch.Generator())
    assert first.shape == second.shape == (4, 3, 16, 16)
    assert first.dtype is torch.float32
    assert not torch.equal(first, second)
    assert first.std() > 0.3  # normalised: not all black, and not from 0 to 255
    assert first.abs().max() < 3
    # Each image has a draw of its own.
    same = make(config, 16)(images[:1].expand(4, -1, -1, -1), torch.Generator())[0]
    assert len({tuple(view.flatten().tolist()) for view in same}) == 4
