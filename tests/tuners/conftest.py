from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def mixed() -> dict[str, Any]:
    """A search space with every kind of choice that NNI has, a nested one among them."""
    return {
        "lr": {"_type": "loguniform", "_value": [1e-4, 1.0]},
        "width": {"_type": "quniform", "_value": [8, 64, 8]},
        "x": {"_type": "normal", "_value": [0, 1]},
        "n": {"_type": "randint", "_value": [2, 9]},
        "block": {
            "_type": "choice",
            "_value": [{"_name": "a", "k": {"_type": "choice", "_value": [3, 5, 7]}}, {"_name": "b"}],
        },
    }
