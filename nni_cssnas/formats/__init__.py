"""The network of an architecture as files that need nothing of this package."""

from nni_cssnas.formats.write import FORMATS, Exported, export, load_weights

__all__ = ["FORMATS", "Exported", "export", "load_weights"]
