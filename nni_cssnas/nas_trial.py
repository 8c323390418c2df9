"""What a trial of :class:`nni_cssnas.NasExperiment` starts with: NNI's own trial, but with the trial's own parameters."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Evaluate one architecture; gives the process's exit code, 1 for an error that a user can mend."""
    from nni_cssnas import pairing
    from nni_cssnas.errors import CssnasError
    from nni_cssnas.imports import defer_lightning

    pairing.install()
    pairing.share_cores()
    defer_lightning()
    from nni.nas.execution.training_service import trial_entry

    try:
        trial_entry()
    except CssnasError as error:
        print(f"nni_cssnas: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
