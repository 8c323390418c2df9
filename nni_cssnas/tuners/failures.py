"""Whether trials fail because of a mistake that further trials would only repeat."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.carried import COLLECTED
from nni_cssnas.results.records import RECORD_NAME, TrialRecord

__all__ = ["ENOUGH", "Failures"]

ENOUGH = 8
"""So many trials that fail for one reason, and none that succeeds, end a search."""

TRIALS = Path("environments") / "local-env" / "trials"
"""Where NNI's local training service keeps the trials of an experiment."""

_logger = logging.getLogger("nni.tuner.cssnas")


class Failures:
    """The failed trials of one session, until the first one succeeds.

    Life cycle: :meth:`add` for each failure, :meth:`end` with the first success, :meth:`hopeless` before each proposal.
    A tuner is not told why a trial failed, so the reason is read from the trials' folders, or from what trials on other
    machines have sent, which arrives a moment later.
    """

    def __init__(self) -> None:
        self.number = 0
        self.start = time.time()
        self.ended = False
        self.reason: str | None = None

    def add(self) -> None:
        """A trial failed."""
        self.number += 1

    def end(self) -> None:
        """A trial succeeded, so that later failures are of single architectures."""
        self.ended = True

    def hopeless(self) -> bool:
        """Whether at least :data:`ENOUGH` trials of this session have failed, for one reason, and none succeeded."""
        if self.reason is None and not self.ended and self.number >= ENOUGH:
            self._look()
        return self.reason is not None

    def _look(self) -> None:
        folder = os.environ.get("NNI_CHECKPOINT_DIRECTORY")
        if not folder:
            return
        trials, wanted = Path(folder).parent / TRIALS, self.number
        if not trials.is_dir():
            # Those on other machines, of which the last have not arrived yet.
            trials, wanted = Path(folder).parent / COLLECTED, ENOUGH
        common = Counter(self._reasons(trials)).most_common()
        # Trials that still run may have printed something too.
        if common and common[0][1] >= max(wanted, ENOUGH if len(common) == 1 else self.number):
            self.reason = common[0][0]
            _logger.error(
                "the first %d trials have all failed, so the search ends here. Each said: %s. Mend that and start anew; "
                "what they printed is in %s/*/trial.stderr",
                self.number,
                self.reason,
                trials,
            )

    def _reasons(self, trials: Path) -> Iterator[str]:
        """What each trial of this session that failed said; it may be unreadable, or written just now."""
        try:
            folders = sorted(path for path in trials.iterdir() if path.stat().st_mtime >= self.start - 1)
        except OSError:
            return
        for folder in folders:
            reason = _reason(folder)
            if reason:
                # A reason that names the trial's own folder is still the same.
                yield reason.replace(folder.name, "TRIAL")


def _reason(folder: Path) -> str | None:
    """The error of a failed trial's record; where it failed before it had one, the last line that it printed."""
    try:
        if (folder / RECORD_NAME).is_file():
            record = TrialRecord.read(folder / RECORD_NAME)
            return " ".join((record.error or "").split()) if record.status == "failed" else None
        lines = (folder / "trial.stderr").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ExperimentError):
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
