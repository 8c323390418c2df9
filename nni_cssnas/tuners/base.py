"""What all tuners of this package share: tolerance of what NNI's manager really sends.

Life cycle of a proposal: ``generate_parameters(id)`` -> the trial runs -> ``receive_trial_result(id, ...)``
and ``trial_end(id, success)``, in either order, from two threads; a trial that fails has only the
latter. NNI 3.0 may also send ids that the tuner never gave out. None of this may raise: an exception in
a tuner leaves the experiment RUNNING for ever.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["finite_score"]


def finite_score(value: Any) -> float | None:
    """The finite number in a trial's final metric (a number, or a dict with ``default``), or None."""
    if isinstance(value, dict):
        value = value.get("default")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
