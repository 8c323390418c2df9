"""``nnictl`` of this Python, but patient: NNI's own gives up a manager that needs more than four seconds to answer."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from nni_cssnas.errors import ExperimentError

__all__ = ["be_patient", "check_libraries"]

TRIES = 60
"""Questions to a manager that starts, one a second."""


def be_patient() -> None:
    """Let NNI's launcher in this process wait a minute for a manager's first answer."""
    from nni.experiment import launcher

    _, *others = launcher._check_rest_server.__defaults__
    launcher._check_rest_server.__defaults__ = (TRIES, *others)


def check_libraries() -> None:
    """Refuse libraries with which NNI 3.0 cannot start a manager.

    pip installs none of them beside NNI, but a later installation of something else may.

    Raises
    ------
    ExperimentError
        Which names the library, its version and the remedy.
    """
    version = importlib.metadata.version("filelock")
    major, minor = map(int, version.split(".")[:2])
    # NNI's lock sets an attribute of the base class that is another one since 3.12.
    if (major, minor) >= (3, 12):
        raise ExperimentError(
            f"filelock {version} is installed, with which nnictl waits for ever; install an older one: pip install 'filelock<3.12'"
        )
    if importlib.util.find_spec("pkg_resources") is None:
        raise ExperimentError(
            "setuptools is missing or newer than 81, and nnictl needs its pkg_resources; pip install 'setuptools<82'"
        )


if __name__ == "__main__":
    be_patient()
    from nni.tools.nnictl.nnictl import parse_args

    parse_args()
