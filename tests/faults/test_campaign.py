"""The fault campaign: a short one, and with ``CSSNAS_FAULTS=1000`` the long one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import campaign

FAULTS = int(os.environ.get("CSSNAS_FAULTS", "200"))


@pytest.mark.slow
@pytest.mark.timeout(400 + 2 * FAULTS, method="thread")  # the campaign itself uses the other method's signal
def test_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = campaign.run(FAULTS, 0, tmp_path, running=False)
    _report(found, capsys)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600 + 2 * FAULTS, method="thread")
def test_on_running_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = campaign.Campaign(tmp_path, 0)
    campaign.running_faults.inject_all(found, FAULTS / campaign.LONG)
    _report(found, capsys)


def _report(found: campaign.Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{found.table()}", *found.findings, sep="\n")
    assert found.injected
    assert not found.bad, found.findings
