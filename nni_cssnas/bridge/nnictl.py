"""``nnictl`` of this Python, but patient: NNI's own gives up a manager that needs more than four seconds to answer."""

from __future__ import annotations

__all__ = ["be_patient"]

TRIES = 60
"""Questions to a manager that starts, one a second."""


def be_patient() -> None:
    """Let NNI's launcher in this process wait a minute for a manager's first answer."""
    from nni.experiment import launcher

    _, *others = launcher._check_rest_server.__defaults__
    launcher._check_rest_server.__defaults__ = (TRIES, *others)


if __name__ == "__main__":
    be_patient()
    from nni.tools.nnictl.nnictl import parse_args

    parse_args()
