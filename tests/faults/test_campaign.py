"""The fault campaign without experiments: a short one, and with ``CSSNAS_FAULTS=1000`` the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import campaign
from counting import FAULTS, report


@pytest.mark.slow
@pytest.mark.timeout(600 + 2 * FAULTS, method="thread")  # the campaign itself uses the other method's signal
def test_in_process_and_on_screenings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = campaign.run(FAULTS, 0, tmp_path, running=False)
    campaign.running_faults.inject_screenings(found, FAULTS / campaign.LONG)
    report(found, capsys)
