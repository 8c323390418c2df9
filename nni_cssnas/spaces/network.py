"""The network that a genotype stands for: stem, cells, pooled features, head (arXiv:1806.09055, appendix).

What cannot influence the output is never built: a node without a path from the input or to the
output, a preprocessing whose result no edge reads, a whole cell that the next two skip. So every
parameter gets a gradient, and parameters and multiply-adds are those of the architecture.
"""

from __future__ import annotations

import torch
from torch import nn

from nni_cssnas.errors import ConfigError
from nni_cssnas.genotype import Cell, Genotype
from nni_cssnas.spaces.backbone import Stage, Structure
from nni_cssnas.spaces.operations import FactorizedReduce, ReLUConvBN, make_layer, make_operation

__all__ = ["CellNetwork", "liveness", "make_stem"]


class _CellModule(nn.Module):
    """One cell at one place of the network: two states in, the concatenation of its nodes out.

    ``inputs`` says which of the two inputs carry anything; ``widths`` are their channels.
    """

    def __init__(
        self,
        cell: Cell,
        C: int,  # noqa: N803
        *,
        widths: tuple[int, int],
        inputs: frozenset[int],
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        self.C = C
        self.widths = widths
        self.reduction = reduction
        self.reduction_prev = reduction_prev
        self.live = cell.live_nodes(inputs)
        self.concat = cell.concat
        used = cell.live_inputs(inputs)
        self.preprocess = nn.ModuleDict()
        if 0 in used:
            self.preprocess["0"] = _preprocessing(FactorizedReduce if reduction_prev else ReLUConvBN, widths[0], C)
        if 1 in used:
            self.preprocess["1"] = _preprocessing(ReLUConvBN, widths[1], C)
        self.edges = nn.ModuleDict()  # "source-target" -> operation
        self.incoming: dict[int, list[tuple[int, str, bool]]] = {}
        self.operations: dict[str, str] = {}  # by the same name
        for state in sorted(self.live):
            self.incoming[state] = []
            for edge in cell.nodes[state - 2]:
                if edge.source not in used and edge.source not in self.live:
                    continue
                stride = 2 if reduction and edge.source < 2 else 1
                name = f"{edge.source}-{state}"
                self.edges[name] = make_operation(edge.operation, C, stride)
                # Dropping an identity would cut the shortest way of the gradient; DARTS spares it too.
                droppable = not isinstance(self.edges[name], nn.Identity)
                self.incoming[state].append((edge.source, name, droppable))
                self.operations[name] = edge.operation

    def forward(self, s0: torch.Tensor | None, s1: torch.Tensor | None, drop_path: float) -> torch.Tensor:
        """States ``(B, C_i, H_i, W_i)`` to ``(B, C * len(concat), H, W)``; an unused state may be None."""
        states: dict[int, torch.Tensor] = {}
        for slot, previous in enumerate((s0, s1)):
            if str(slot) in self.preprocess:
                states[slot] = self.preprocess[str(slot)](previous)
        for target, edges in self.incoming.items():
            total: torch.Tensor | None = None
            for source, name, droppable in edges:
                value = self.edges[name](states[source])
                if drop_path > 0 and droppable:
                    # Not at the top: torchvision takes two seconds, and a search drops no paths.
                    from torchvision.ops import stochastic_depth

                    value = stochastic_depth(value, drop_path, mode="row", training=self.training)
                total = value if total is None else total + value
            assert total is not None
            states[target] = total
        zeros = None
        parts = []
        for state in self.concat:
            if state in self.live:
                parts.append(states[state])
            else:  # a node that nothing reaches adds nothing, but keeps the width
                zeros = torch.zeros_like(states[max(self.live)]) if zeros is None else zeros
                parts.append(zeros)
        return torch.cat(parts, dim=1)


def _preprocessing(kind: type[FactorizedReduce | ReLUConvBN], C_in: int, C_out: int) -> nn.Module:  # noqa: N803
    return make_layer(lambda: kind(C_in, C_out), kind.__name__, C_in, C_out)


class _AuxiliaryHead(nn.Module):
    """DARTS's auxiliary classifier on the output of the second reduction cell."""

    def __init__(self, C: int, num_classes: int, stem: str) -> None:  # noqa: N803
        super().__init__()
        stride = 3 if stem == "cifar" else 2
        layers: list[nn.Module] = [
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stride, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
        ]
        # The published ImageNet code leaves this normalisation out by mistake and kept it so for its numbers.
        if stem == "cifar":
            layers.append(nn.BatchNorm2d(768))
        layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, 8, 8)`` (CIFAR) or ``(B, C, 14, 14)`` (ImageNet) to ``(B, num_classes)``."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class CellNetwork(nn.Module):
    """A stack of cells; the cells at one and two thirds of the depth halve the resolution and double the channels.

    Parameters
    ----------
    genotype
        The two cells.
    num_cells
        Depth, at least 3.
    channels
        Width ``C`` of the first cells' nodes.
    stem
        ``cifar``: one 3x3 convolution to ``3 C`` channels. ``imagenet``: three with stride 2.
    num_classes
        Logits ``(B, num_classes)``, or pooled features ``(B, num_features)`` if it is 0.
    drop_path
        Probability of dropping an edge in training (stochastic depth for every image and edge);
        the attribute may be changed while training.
    auxiliary
        In training mode ``forward`` gives ``(logits, auxiliary logits)``.

    Raises
    ------
    ConfigError
        If ``num_cells`` is below 3, ``channels`` below 1, or an auxiliary head has no classes.

    Attributes
    ----------
    connected : bool
        Whether the output depends on the input at all. If it does not, the features are zeros.
    num_features : int
        Width of the pooled features.
    """

    def __init__(
        self,
        genotype: Genotype,
        num_cells: int = 8,
        channels: int = 16,
        *,
        stem: str = "cifar",
        num_classes: int = 0,
        drop_path: float = 0.0,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        if num_cells < 3 or channels < 1:
            raise ConfigError(f"num_cells is {num_cells} and channels {channels}; at least 3 cells and 1 channel")
        if auxiliary and not num_classes:
            raise ConfigError("auxiliary is true but num_classes is 0; an auxiliary head needs classes to predict")
        self.genotype = genotype
        self.channels = channels
        self.stem_kind = stem
        self.num_classes = num_classes
        self.drop_path = drop_path
        self.reductions = (num_cells // 3, 2 * num_cells // 3)
        plan = [genotype.reduce if index in self.reductions else genotype.normal for index in range(num_cells)]
        inputs, needed = liveness(plan, keep=self.reductions[1] if auxiliary else None)
        self.connected = num_cells - 1 in needed
        self.stem = make_stem(stem, channels, needed)

        width = channels
        if stem == "cifar":
            widths, reduction_prev = (3 * channels, 3 * channels), False
        else:
            widths, reduction_prev = (channels, channels), True
        self.cells = nn.ModuleDict()  # depth -> cell; those that nothing needs are left out
        for index, cell in enumerate(plan):
            reduction = index in self.reductions
            width = width * 2 if reduction else width
            if index in needed:
                self.cells[str(index)] = _CellModule(
                    cell,
                    width,
                    widths=widths,
                    inputs=inputs[index],
                    reduction=reduction,
                    reduction_prev=reduction_prev,
                )
            reduction_prev = reduction
            widths = (widths[1], width * len(cell.concat))
        self.num_cells = num_cells
        self.num_features = widths[1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.auxiliary_head: nn.Module | None = None
        if auxiliary and self.reductions[1] in needed:
            aux_width = channels * 4 * len(genotype.reduce.concat)
            self.auxiliary_head = _AuxiliaryHead(aux_width, num_classes, stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Map images ``(B, 3, H, W)`` to logits or pooled features; see the class."""
        batch = x
        states: list[torch.Tensor | None] = [None, None]
        for index, layer in enumerate(self.stem):
            x = layer(x)
            states[index] = x
        if len(self.stem) == 1 and isinstance(self.stem[0], _CifarStem):
            states[1] = states[0]
        auxiliary = None
        s0, s1 = states
        for index in range(self.num_cells):
            name = str(index)
            out = self.cells[name](s0, s1, self.drop_path if self.training else 0.0) if name in self.cells else None
            s0, s1 = s1, out
            if self.training and index == self.reductions[1] and self.auxiliary_head is not None:
                auxiliary = self.auxiliary_head(out)
        features = batch.new_zeros(batch.shape[0], self.num_features) if s1 is None else self.pool(s1).flatten(1)
        logits: torch.Tensor = self.classifier(features)
        return logits if auxiliary is None else (logits, auxiliary)

    def known_structure(self, size: int) -> Structure | None:
        """What :func:`~nni_cssnas.spaces.backbone.inspect` would find with images of ``size``; None if a cell is left out.

        Every cell has a convolution at its own resolution, and three resolutions are what makes each cell a stage.
        """
        cifar = [(1, 3 * self.channels)]
        stem = cifar if self.stem_kind == "cifar" else [(4, self.channels), (8, self.channels)]
        stride, width = stem[-1][0], self.channels
        smallest = 4 * stride
        whole = len(self.cells) == self.num_cells and len(self.stem) == len(stem)
        headless = self.num_classes > 0 and not isinstance(self.classifier, nn.Linear)
        if not whole or headless or size % smallest or size // smallest < 2:
            return None
        stages = [
            Stage(f"stem.{index}", channels, (size // down, size // down))
            for index, (down, channels) in enumerate(stem)
        ]
        for name, cell in self.cells.items():
            assert isinstance(cell, _CellModule)
            if int(name) in self.reductions:
                stride, width = 2 * stride, 2 * width
            stages.append(Stage(f"cells.{name}", width * len(cell.concat), (size // stride, size // stride)))
        return Structure("classifier" if self.num_classes else None, self.num_features, tuple(stages))


class _CifarStem(nn.Sequential):
    """3x3 convolution and batch norm; both inputs of the first cell."""

    def __init__(self, C: int) -> None:  # noqa: N803
        super().__init__(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))


def make_stem(kind: str, C: int, needed: frozenset[int]) -> nn.ModuleList:  # noqa: N803
    """The layers whose outputs are states -2 and -1; only those that a cell needs."""
    if kind not in ("cifar", "imagenet"):
        raise ConfigError(f"stem is {kind!r}; known: 'cifar', 'imagenet'")
    if not needed & {-2, -1}:
        return nn.ModuleList()
    if kind == "cifar":
        return nn.ModuleList([_CifarStem(C)])
    layers: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
    ]
    if -1 in needed:
        layers.append(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(C),
            )
        )
    return nn.ModuleList(layers)


def liveness(plan: list[Cell], keep: int | None = None) -> tuple[list[frozenset[int]], frozenset[int]]:
    """Which inputs of every cell carry anything, and which cells (-2 and -1: the stem) are needed.

    ``keep`` is a cell whose output is read besides the last one's (by the auxiliary head).
    """
    alive = {-2, -1}
    inputs: list[frozenset[int]] = []
    for index, cell in enumerate(plan):
        carried = frozenset(slot for slot in (0, 1) if index - 2 + slot in alive)
        inputs.append(carried)
        if cell.live_nodes(carried):
            alive.add(index)
    needed = {index for index in (len(plan) - 1, keep) if index in alive}
    for index in reversed(range(len(plan))):
        if index in needed:
            needed.update(index - 2 + slot for slot in plan[index].live_inputs(inputs[index]))
    return inputs, frozenset(index for index in needed if index is not None)
