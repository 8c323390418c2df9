"""``nni-cssnas``: what surrounds ``nnictl``. Heavy libraries are imported by the commands that need them."""

from nni_cssnas.cli import experiments, labels, network, results, searching
from nni_cssnas.cli.app import app, main

__all__ = ["app", "experiments", "labels", "main", "network", "results", "searching"]
