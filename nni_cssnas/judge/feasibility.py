"""Whether an architecture may become a trial at all."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nni_cssnas.base.device import resolve_device
from nni_cssnas.config import ConstraintsConfig, ProxyConfig
from nni_cssnas.errors import SpaceError
from nni_cssnas.genotype import Choices
from nni_cssnas.scores.cost import latency, multiply_adds, num_parameters
from nni_cssnas.spaces.backbone import Backbone
from nni_cssnas.spaces.encoding import decode
from nni_cssnas.spaces.factory import make_space

__all__ = ["Feasibility"]


class Feasibility:
    """Whether an architecture keeps the constraints of its space and of the user, before a trial is spent on it.

    Parameters
    ----------
    limits
        A tuner's ``constraints``.
    config
        All of ``proxy.yml``.

    Raises
    ------
    CssnasError
        If the space cannot be used.
    """

    def __init__(self, limits: ConstraintsConfig, config: ProxyConfig) -> None:
        self.limits = limits
        self.config = config
        self.space = make_space(self.config.scored_space)
        self.size = self.config.views.input_size or self.config.images.size
        self.measured = any((limits.max_params, limits.max_macs, limits.max_latency_ms))

    def problem(self, choices: Choices) -> str | None:
        """Which constraint an architecture breaks, and by how much; None if it keeps all. One that cannot be built breaks them."""
        try:
            sample = decode(self.space, choices)
            if not self.measured:
                return None
            backbone = Backbone(self.space.freeze(sample), self.size, self.config.space.classifier)
            costs: list[tuple[str, float | None, Callable[[], float]]] = [
                ("max_params", self.limits.max_params, lambda: num_parameters(backbone)),
                ("max_macs", self.limits.max_macs, lambda: multiply_adds(backbone, (3, self.size, self.size))),
                ("max_latency_ms", self.limits.max_latency_ms, lambda: self._latency(backbone)),
            ]
            for name, limit, cost in costs:
                if limit is not None and (found := cost()) > limit:
                    return f"{name} is {limit:g}, and it has {found:g}"
        except SpaceError as error:
            return str(error)
        except Exception as error:  # a layer's own, out of memory: it must not end the tuner that asks
            return f"the network cannot be built: {type(error).__name__}: {error}"
        return None

    def _latency(self, backbone: Backbone) -> float:
        device = resolve_device(self.config.device)
        return latency(backbone.to(device), torch.zeros(1, 3, self.size, self.size, device=device))
