"""What a network can be written as."""

from __future__ import annotations

__all__ = ["FORMATS"]

FORMATS = {"python": ".py", "onnx": ".onnx", "torchscript": ".pt", "state-dict": ".pth"}
"""Every format and what its files end with."""
