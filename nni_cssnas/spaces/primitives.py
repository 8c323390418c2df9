"""NNI's model-space primitives, imported without the noise that NNI 3.0 makes on a current torch."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # NNI wraps everything it finds in torch.nn and warns of each name that is no module there.
    warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from nni import choice
    from nni.mutable import Categorical, CategoricalMultiple, Constraint, LabeledMutable, Numerical, ensure_frozen
    from nni.nas.nn.pytorch import ModelSpace

__all__ = [
    "Categorical",
    "CategoricalMultiple",
    "Constraint",
    "LabeledMutable",
    "ModelSpace",
    "Numerical",
    "choice",
    "ensure_frozen",
]
