"""The fault campaign on running experiments, beside the other one: in a file of its own, another process takes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import campaign
from counting import FAULTS, Campaign, report


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600 + 2 * FAULTS, method="thread")
def test_on_running_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Campaign(tmp_path, 0)
    campaign.running_faults.inject_experiments(found, FAULTS / campaign.LONG)
    report(found, capsys)
