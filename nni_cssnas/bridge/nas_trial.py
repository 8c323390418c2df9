"""What a trial of :class:`nni_cssnas.NasExperiment` starts with: NNI's own trial, but with the trial's own parameters.

An architecture of NNI's NAS is serialized as code: pickles, and names of what shall be called. So the manager, which
others may reach, carries only the name of a file that the experiment's process has written into its own folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nni_cssnas.base.fork_server import end_as
from nni_cssnas.bridge import forked

__all__ = ["command", "main"]


def command() -> int:
    """What ``python -m nni_cssnas.bridge.nas_trial`` does: :func:`main`, in a forked process where there can be one."""
    arguments = sys.argv[1:]
    if arguments[-2:-1] == ["--serve"]:
        return forked.serve(int(arguments[-1]), arguments, lambda _: main())
    code = forked.run("nni_cssnas.bridge.nas_trial", arguments)
    return main() if code is None else end_as(code)


def main() -> int:
    """Evaluate one architecture in this process; gives the process's exit code, 1 for an error that a user can mend."""
    from nni_cssnas.bridge import pairing
    from nni_cssnas.errors import CssnasError

    pairing.install()
    pairing.share_cores()
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
    from nni_cssnas.bridge.nas_trial import command as run

    sys.exit(run())
