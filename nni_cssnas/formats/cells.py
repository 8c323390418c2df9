"""The source of one network of cells, as a module that needs only torch and reads as if written by hand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from nni_cssnas.spaces import operations
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["cell_source"]

MAKERS = {
    "max_pool_3x3": "nn.MaxPool2d(3, stride=stride, padding=1)",
    "avg_pool_3x3": "nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)",
    "skip_connect": "nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)",
    "sep_conv_3x3": "SepConv(channels, 3, stride)",
    "sep_conv_5x5": "SepConv(channels, 5, stride)",
    "dil_conv_3x3": "DilConv(channels, 3, stride)",
    "dil_conv_5x5": "DilConv(channels, 5, stride)",
}
"""Operation -> the expression that makes it."""


def cell_source(network: CellNetwork, title: str) -> str:
    """Python source of a class ``Network`` with the parameters of ``network``, by the same names.

    Drop path is left out: it has no parameters, and none is dropped in evaluation.

    Parameters
    ----------
    network
        The network to write; what it leaves out, since it cannot influence the output, is left out here.
    title
        What the module's docstring says of its origin.
    """
    cells: dict[int, Any] = {int(name): cell for name, cell in network.cells.items()}
    tables = _Tables(cells)
    used = sorted({operation for cell in cells.values() for operation in cell.operations.values()})
    parts = [_header(title, functional=bool(cells)), *_operations(network)]
    if cells:
        parts += [tables.source(), _make_operation(used), _cell_class(cells)]
    if network.auxiliary_head is not None:
        parts.append(_class_source(type(network.auxiliary_head), "AuxiliaryHead"))
    parts += [_network_class(network, cells, tables), _main(network)]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


class _Tables:
    """Named lists of edges; cells with the same edges share one."""

    def __init__(self, cells: dict[int, Any]) -> None:
        self.names: dict[tuple[tuple[int, int, str], ...], str] = {}
        self.of_cell: dict[int, str] = {}
        for index, cell in cells.items():
            edges = tuple(
                (source, state, cell.operations[name])
                for state, incoming in cell.incoming.items()
                for source, name, _ in incoming
            )
            kind = "REDUCTION" if cell.reduction else "NORMAL"
            if edges not in self.names:
                same = sum(name.startswith(kind) for name in self.names.values())
                self.names[edges] = kind if not same else f"{kind}_{same + 1}"
            self.of_cell[index] = self.names[edges]

    def source(self) -> str:
        lines = [
            "# The edges of a cell: (from state, to state, operation). States 0 and 1 are the outputs of the cell before the",
            "# last and of the last; the others are sums of what their edges bring.",
        ]
        for edges, name in self.names.items():
            lines.append(f"{name} = [")
            lines += [f'    ({source}, {state}, "{operation}"),' for source, state, operation in edges]
            lines.append("]")
        return "\n".join(lines)


def _header(title: str, functional: bool) -> str:
    imports = "import torch\nimport torch.nn.functional as F\n" if functional else "import torch\n"
    return f'"""{title}\n"""\n\n{imports}from torch import nn'


def _operations(network: CellNetwork) -> list[str]:
    """The classes of operations that the network needs, from this package's own source."""
    present = {type(module) for module in network.modules()}
    if network.cells:  # a cell names both
        present |= {operations.ReLUConvBN, operations.FactorizedReduce}
    classes = (operations.ReLUConvBN, operations.DilConv, operations.SepConv, operations.FactorizedReduce)
    return [_class_source(kind, kind.__name__) for kind in classes if kind in present]


def _class_source(kind: type[nn.Module], name: str) -> str:
    source = inspect.getsource(kind).replace(f"class {kind.__name__}(", f"class {name}(")
    # What concerns this package's linters, not the reader.
    return re.sub(r"  # (noqa|type:)[^\n]*", "", source)


def _make_operation(used: Sequence[str]) -> str:
    lines = ["def make_operation(name: str, channels: int, stride: int) -> nn.Module:"]
    for operation in used:
        lines += [f'    if name == "{operation}":', f"        return {MAKERS[operation]}"]
    return "\n".join([*lines, "    raise ValueError(name)"])


def _cell_class(cells: dict[int, Any]) -> str:
    some = next(iter(cells.values()))
    concat = {cell.concat for cell in cells.values()}
    dead = any(set(cell.concat) - cell.live for cell in cells.values())
    output = "self.output" if len(concat) > 1 else repr(tuple(some.concat))
    parameter = ", output: tuple" if len(concat) > 1 else ""
    keep = "\n        self.output = output" if len(concat) > 1 else ""
    states = f"[states[state] for state in {output}]"
    if dead:
        states = f"[states.get(state, torch.zeros_like(states[max(states)])) for state in {output}]"
    return f'''
class Cell(nn.Module):
    """Two feature maps in, the concatenation of the nodes {", ".join(map(str, some.concat))} out.

    ``widths`` are the channels of the inputs, ``shrink`` halves the first one, which is from before a reduction.
    """

    def __init__(self, edges: list, channels: int, widths: tuple, stride: int = 1, shrink: bool = False{parameter}):
        super().__init__(){keep}
        sources = {{source for source, _, _ in edges}}
        self.preprocess = nn.ModuleDict()
        if 0 in sources:
            self.preprocess["0"] = (FactorizedReduce if shrink else ReLUConvBN)(widths[0], channels)
        if 1 in sources:
            self.preprocess["1"] = ReLUConvBN(widths[1], channels)
        self.edges = nn.ModuleDict()
        for source, state, name in edges:
            self.edges[f"{{source}}-{{state}}"] = make_operation(name, channels, stride if source < 2 else 1)

    def forward(self, before_last, last):
        inputs = {{"0": before_last, "1": last}}
        states = {{int(name): layer(inputs[name]) for name, layer in self.preprocess.items()}}
        for name, operation in self.edges.items():
            source, state = map(int, name.split("-"))
            value = operation(states[source])
            states[state] = states[state] + value if state in states else value
        return torch.cat({states}, dim=1)
'''


def _network_class(network: CellNetwork, cells: dict[int, Any], tables: _Tables) -> str:
    lines = [
        "class Network(nn.Module):",
        f'    """Images (batch, 3, height, width) to {_gives(network)}."""',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *_stem(network),
        *(
            ["        self.cells = nn.ModuleDict(", "            {"]
            if cells
            else ["        self.cells = nn.ModuleDict()"]
        ),
    ]
    several = len({cell.concat for cell in cells.values()}) > 1
    for index, cell in cells.items():
        arguments = [tables.of_cell[index], str(cell.C), repr(tuple(cell.widths))]
        arguments += ["stride=2"] if cell.reduction else []
        arguments += ["shrink=True"] if cell.reduction_prev and "0" in cell.preprocess else []
        arguments += [f"output={tuple(cell.concat)!r}"] if several else []
        lines.append(f'                "{index}": Cell({", ".join(arguments)}),')
    lines += ["            }", "        )"] if cells else []
    lines.append("        self.pool = nn.AdaptiveAvgPool2d(1)")
    classifier = f"nn.Linear({network.num_features}, {network.num_classes})" if network.num_classes else "nn.Identity()"
    lines.append(f"        self.classifier = {classifier}")
    if network.auxiliary_head is not None:
        width = network.channels * 4 * len(network.genotype.reduce.concat)
        lines.append(
            f'        self.auxiliary_head = AuxiliaryHead({width}, {network.num_classes}, "{network.stem_kind}")'
        )
    return "\n".join([*lines, "", *_forward(network, cells)])


def _gives(network: CellNetwork) -> str:
    if not network.num_classes:
        return f"features (batch, {network.num_features})"
    logits = f"logits (batch, {network.num_classes})"
    return f"{logits}; in training mode with the auxiliary ones" if network.auxiliary_head is not None else logits


def _stem(network: CellNetwork) -> list[str]:
    lines = ["        self.stem = nn.ModuleList()"]
    for layer in network.stem:
        lines += ["        self.stem.append(", "            nn.Sequential("]
        for part in layer.children():
            if isinstance(part, nn.Conv2d):
                stride = f", stride={part.stride[0]}" if part.stride[0] > 1 else ""
                what = f"nn.Conv2d({part.in_channels}, {part.out_channels}, 3{stride}, padding=1, bias=False)"
            else:
                what = f"nn.BatchNorm2d({part.num_features})" if isinstance(part, nn.BatchNorm2d) else "nn.ReLU()"
            lines.append(f"                {what},")
        lines += ["            )", "        )"]
    return lines


def _forward(network: CellNetwork, cells: dict[int, Any]) -> list[str]:
    """The states are (before last, last); a cell that was left out gives none."""
    lines = ["    def forward(self, images):"]
    if len(network.stem) == 2:
        lines += ["        before_last = self.stem[0](images)", "        last = self.stem[1](before_last)"]
    elif len(network.stem) == 1 and network.stem_kind == "cifar":
        lines += ["        before_last = last = self.stem[0](images)"]
    elif len(network.stem) == 1:
        lines += ["        before_last, last = self.stem[0](images), None"]
    else:
        lines += ["        before_last = last = None"]
    auxiliary = network.auxiliary_head is not None
    if len(cells) == network.num_cells and not auxiliary:
        lines += [
            "        for cell in self.cells.values():",
            "            before_last, last = last, cell(before_last, last)",
        ]
    elif cells:
        call = 'self.cells[f"{index}"](before_last, last)'
        if len(cells) < network.num_cells:
            call += ' if f"{index}" in self.cells else None  # what nothing reads was left out'
        lines += [
            f"        for index in range({network.num_cells}):",
            f"            before_last, last = last, {call}",
        ]
        if auxiliary:
            lines += [
                f"            if index == {network.reductions[1]} and self.training:",
                "                auxiliary = self.auxiliary_head(last)",
            ]
    if network.connected:
        lines.append("        logits = self.classifier(self.pool(last).flatten(1))")
    else:
        lines += [
            "        # No path leads from the images to the output of this architecture.",
            f"        logits = self.classifier(images.new_zeros(len(images), {network.num_features}))",
        ]
    lines.append(
        "        return (logits, auxiliary) if self.training else logits" if auxiliary else "        return logits"
    )
    return lines


def _main(network: CellNetwork) -> str:
    size = 224 if network.stem_kind == "imagenet" else 32
    return f"""
if __name__ == "__main__":
    network = Network().eval()
    print(f"{{sum(weight.numel() for weight in network.parameters()):,}} parameters")
    print(f"output {{tuple(network(torch.randn(2, 3, {size}, {size})).shape)}}")
"""
