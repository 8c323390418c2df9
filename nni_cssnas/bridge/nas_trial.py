"""What a trial of :class:`nni_cssnas.NasExperiment` starts with: NNI's own trial, but with the trial's own parameters.

An architecture of NNI's NAS is serialized as code: pickles, and names of what shall be called. So the manager, which
others may reach, carries only the name of a file that the experiment's process has written into its own folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["main"]


def main() -> int:
    """Evaluate one architecture; gives the process's exit code, 1 for an error that a user can mend."""
    from nni_cssnas.bridge import pairing
    from nni_cssnas.bridge.imports import defer_lightning
    from nni_cssnas.errors import CssnasError

    pairing.install()
    pairing.share_cores()
    defer_lightning()
    import nni

    try:
        parameters = nni.get_next_parameter()

        from nni_cssnas.bridge.owned import MODELS, read_model

        # .../EXPERIMENT/environments/ENVIRONMENT/trials/TRIAL
        experiment = Path(os.environ["NNI_OUTPUT_DIR"]).resolve().parents[3]
        nni.load(read_model(experiment / MODELS, parameters)).execute()
    except CssnasError as error:
        print(f"nni_cssnas: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
