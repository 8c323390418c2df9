"""The CSNAS / DARTS search space, declared with NNI's model-space primitives.

Two encodings of a cell (METHOD: both deterministic, a sample names exactly which edges exist):

``two-input``
    Every node reads an unordered pair of distinct earlier states, with one operation for each. This
    is the form in which DARTS, PC-DARTS and CSNAS publish their cells. Choices of node ``n``:
    ``normal_n_inputs`` (``"0+2"``), ``normal_n_first`` and ``normal_n_second`` (the operations on the
    lower and the higher state).
``edge``
    Every earlier state may be read; ``none`` drops the edge. Choices ``normal_n_from_s``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from nni_cssnas.config import CellSpaceConfig
from nni_cssnas.errors import GenotypeError, SpaceError, nearest
from nni_cssnas.genotype import OPERATIONS, Cell, Edge, Genotype, Sample
from nni_cssnas.spaces.network import CellNetwork
from nni_cssnas.spaces.primitives import ModelSpace, choice, ensure_frozen
from nni_cssnas.spaces.width import genotype_width

__all__ = ["CellSpace"]


class CellSpace(ModelSpace):  # type: ignore[misc]
    """All networks of a normal and a reduction cell (arXiv:1806.09055, arXiv:2102.10557).

    Every choice is a plain NNI choice over strings, so any NNI tuner and ``search_space.json`` can
    carry it. :meth:`freeze` gives a plain :class:`~nni_cssnas.spaces.network.CellNetwork`.

    Parameters
    ----------
    encoding
        ``two-input`` or ``edge``; see the module.
    num_nodes
        Intermediate nodes of a cell, 4 (DARTS) or 5 (the paper's larger space).
    num_cells, channels, stem, num_classes, drop_path, auxiliary
        As in :class:`~nni_cssnas.spaces.network.CellNetwork`.
    output_nodes
        The cell's output: ``all`` nodes concatenated, or the ``last4``.
    operations
        Candidates; by default all eight, without ``none`` in ``two-input``.
    params
        Search among networks of one size: each gets the width with which it comes nearest to so many parameters
        (classifier and auxiliary head not counted), and ``channels`` means nothing.

    Raises
    ------
    ConfigError
        If an argument is not one of the above.

    Examples
    --------
    >>> space = CellSpace(num_nodes=4, num_cells=5, channels=8)
    >>> network = space.freeze(space.sample_of(Genotype.parse("DARTS_V2")))
    >>> network(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        encoding: str = "two-input",
        num_nodes: int = 5,
        num_cells: int = 8,
        channels: int = 16,
        stem: str = "cifar",
        num_classes: int = 0,
        output_nodes: str = "all",
        operations: Sequence[str] | None = None,
        drop_path: float = 0.0,
        auxiliary: bool = False,
        params: int | None = None,
    ) -> None:
        super().__init__()
        self.config = CellSpaceConfig(
            encoding=encoding,  # type: ignore[arg-type]
            num_nodes=num_nodes,  # type: ignore[arg-type]
            num_cells=num_cells,
            channels=channels,
            stem=stem,  # type: ignore[arg-type]
            num_classes=num_classes,
            output_nodes=output_nodes,  # type: ignore[arg-type]
            operations=None if operations is None else tuple(operations),
            drop_path=drop_path,
            auxiliary=auxiliary,
            params=params,
        )
        # Inside NNI's model_context this is the architecture to build; outside, the default one.
        sample = {
            label: ensure_frozen(self.add_mutable(choice(label, values))) for label, values in self._choices().items()
        }
        self.network = self._build(sample)

    @property
    def operations(self) -> tuple[str, ...]:
        """The candidate operations."""
        if self.config.operations is not None:
            return self.config.operations
        return OPERATIONS[1:] if self.config.encoding == "two-input" else OPERATIONS

    @property
    def genotype(self) -> Genotype:
        """The architecture of :attr:`network`."""
        return self.network.genotype

    def forward(self, x: torch.Tensor) -> Any:
        """Run :attr:`network`: the default architecture, or the sampled one inside NNI's ``model_context``."""
        return self.network(x)

    def freeze(self, sample: Sample) -> CellNetwork:
        """The network of one sample, freshly initialised.

        Raises
        ------
        SpaceError
            If a choice is missing, or its value is not one of the space's.
        """
        return self._build(sample)

    def genotype_of(self, sample: Sample) -> Genotype:
        """The genotype of one sample. Raises SpaceError as :meth:`freeze`."""
        for label, values in self._choices().items():
            if label not in sample:
                raise SpaceError(f"the sample has no choice {label!r}{nearest(label, sample)}")
            if sample[label] not in values:
                raise SpaceError(f"choice {label} is {sample[label]!r}{nearest(sample[label], values)}")
        return Genotype(**{name: self._cell_of(name, sample) for name in ("normal", "reduce")})

    def sample_of(self, genotype: Genotype) -> dict[str, str]:
        """The sample of one genotype: the inverse of :meth:`genotype_of`.

        Raises
        ------
        SpaceError
            If the space does not contain the genotype (other nodes, operations or concatenation).
        """
        sample: dict[str, str] = {}
        for name, cell in (("normal", genotype.normal), ("reduce", genotype.reduce)):
            if len(cell.nodes) != self.config.num_nodes or cell.concat != self._concat():
                raise SpaceError(
                    f"the {name} cell has {len(cell.nodes)} nodes and concatenates {list(cell.concat)}; "
                    f"this space has {self.config.num_nodes} and {list(self._concat())}"
                )
            for state, edges in enumerate(cell.nodes, start=2):
                by_source = {edge.source: edge.operation for edge in edges}
                if self.config.encoding == "edge":
                    sample |= {
                        f"{name}_{state}_from_{source}": by_source.get(source, "none") for source in range(state)
                    }
                elif len(by_source) != 2:
                    raise SpaceError(
                        f"node {state} of the {name} cell has {len(by_source)} inputs; encoding 'two-input' has 2. "
                        "Use encoding 'edge'"
                    )
                else:
                    low, high = sorted(by_source)
                    if state > 2:
                        sample[f"{name}_{state}_inputs"] = f"{low}+{high}"
                    sample[f"{name}_{state}_first"] = by_source[low]
                    sample[f"{name}_{state}_second"] = by_source[high]
        try:
            self.genotype_of(sample)
        except SpaceError as error:
            raise SpaceError(f"the genotype is not in this space: {error}") from None
        return sample

    def _build(self, sample: Sample) -> CellNetwork:
        config = self.config
        genotype = self.genotype_of(sample)
        channels = config.channels
        if config.params is not None:
            channels, _ = genotype_width(genotype, config.params, config.num_cells, stem=config.stem)
        return CellNetwork(
            genotype,
            config.num_cells,
            channels,
            stem=config.stem,
            num_classes=config.num_classes,
            drop_path=config.drop_path,
            auxiliary=config.auxiliary,
        )

    def _concat(self) -> tuple[int, ...]:
        states = tuple(range(2, 2 + self.config.num_nodes))
        return states[-4:] if self.config.output_nodes == "last4" else states

    def _choices(self) -> dict[str, list[str]]:
        """Every choice of the space: label -> values."""
        choices: dict[str, list[str]] = {}
        operations = list(self.operations)
        for name, state in itertools.product(("normal", "reduce"), range(2, 2 + self.config.num_nodes)):
            if self.config.encoding == "edge":
                choices |= {f"{name}_{state}_from_{source}": operations for source in range(state)}
                continue
            if state > 2:  # the first node has one pair only
                choices[f"{name}_{state}_inputs"] = [f"{a}+{b}" for a, b in itertools.combinations(range(state), 2)]
            choices[f"{name}_{state}_first"] = operations
            choices[f"{name}_{state}_second"] = operations
        return choices

    def _cell_of(self, name: str, sample: Sample) -> Cell:
        nodes = []
        for state in range(2, 2 + self.config.num_nodes):
            if self.config.encoding == "edge":
                operations = {source: sample[f"{name}_{state}_from_{source}"] for source in range(state)}
            else:
                low, high = (int(part) for part in sample.get(f"{name}_{state}_inputs", "0+1").split("+"))
                operations = {low: sample[f"{name}_{state}_first"], high: sample[f"{name}_{state}_second"]}
            nodes.append(tuple(Edge(op, source) for source, op in sorted(operations.items()) if op != "none"))
        try:
            return Cell(tuple(nodes), self._concat())
        except GenotypeError as error:  # cannot happen for a checked sample; says where if it ever does
            raise SpaceError(f"{name} cell: {error}") from None
