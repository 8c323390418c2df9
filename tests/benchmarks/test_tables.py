"""Each table's module against counts and graphs that are written down here, apart from it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tables
    from nni.nas.hub.pytorch import DARTS
    from nni.nas.space import model_context
    from tables import darts, nasbench101, nasbench201, nds, transnas_macro, transnas_micro

from nni_cssnas.errors import ConfigError
from nni_cssnas.scores.cost import num_parameters
from nni_cssnas.spaces.backbone import inspect

NORMAL = [
    ["sep_conv_3x3", 0],
    ["dil_conv_5x5", 1],
    ["skip_connect", 2],
    ["max_pool_3x3", 0],
    ["sep_conv_5x5", 3],
    ["avg_pool_3x3", 1],
    ["dil_conv_3x3", 4],
    ["skip_connect", 0],
]
REDUCE = [
    ["max_pool_3x3", 0],
    ["skip_connect", 1],
    ["sep_conv_3x3", 2],
    ["skip_connect", 0],
    ["dil_conv_3x3", 1],
    ["max_pool_3x3", 3],
    ["sep_conv_5x5", 0],
    ["sep_conv_3x3", 1],
]
ALL = [2, 3, 4, 5]
GENOTYPE = {"normal": NORMAL, "normal_concat": ALL, "reduce": REDUCE, "reduce_concat": ALL}
TWICE = GENOTYPE | {"normal": [["sep_conv_3x3", 0], ["dil_conv_5x5", 0], *NORMAL[2:]]}


def text(data: Any) -> str:
    return json.dumps(data)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---- parameters, counted from the descriptions ---------------------------------------------------------


def conv(c_in: int, c_out: int, k: int) -> int:
    """Weights of a convolution with batch norm."""
    return c_in * c_out * k * k + 2 * c_out


def operation_params(name: str, c: int, stride: int) -> int:
    if name in ("none", "max_pool_3x3", "avg_pool_3x3", "max_pool_5x5", "max_pool_7x7"):
        return 0
    if name == "skip_connect":
        return conv(c, c, 1) if stride == 2 else 0
    if name in ("conv_1x1", "conv_3x3"):
        return conv(c, c, int(name[5]))
    if name in ("conv_7x1_1x7", "conv_3x1_1x3"):
        return 2 * int(name[5]) * c * c + 2 * c
    kernel = int(name[-1])
    separable = c * kernel * kernel + c * c + 2 * c
    return separable if name.startswith("dil_conv") else 2 * separable


def cells_params(genotype: dict[str, Any], width: int, num_cells: int, dataset: str) -> int:
    """A stack of cells whose states all matter, with its classifier."""
    if dataset == "cifar":
        total, before, last = conv(3, 3 * width, 3), 3 * width, 3 * width
    else:
        total = conv(3, width // 2, 3) + conv(width // 2, width, 3) + conv(width, width, 3)
        before = last = width
    c = width
    for index in range(num_cells):
        reduction = index in (num_cells // 3, 2 * num_cells // 3)
        name = "reduce" if reduction else "normal"
        c *= 2 if reduction else 1
        # Both inputs come to c channels by 1x1 convolutions; where the resolution differs, by two halves of one.
        total += conv(before, c, 1) + conv(last, c, 1)
        for operation, source in genotype[name]:
            total += operation_params(operation, c, 2 if reduction and source < 2 else 1)
        before, last = last, c * len(genotype[f"{name}_concat"])
    labels = 10 if dataset == "cifar" else 1000
    return total + last * labels + labels


@pytest.mark.parametrize("genotype", [GENOTYPE, TWICE], ids=["CellSpace", "DARTS of NNI"])
def test_darts_is_the_network_of_the_genotype(genotype: dict[str, Any]) -> None:
    assert tables.costs("darts", text(genotype))["params"] == cells_params(genotype, 36, 20, "cifar")
    for num_cells, width in ((5, 8), (8, 6)):
        network = darts.build(text(genotype), num_cells=num_cells, channels=width)
        assert num_parameters(network) == cells_params(genotype, width, num_cells, "cifar")
        structure = inspect(network, 16)
        assert len(structure.stages) == num_cells + 1  # and the stem
        assert structure.num_features == 4 * 4 * width
    assert type(darts.build(text(genotype))).__name__ == ("NDS" if genotype is TWICE else "CellNetwork")


def test_darts_of_nni_is_its_own_class() -> None:
    ours = darts.build(text(TWICE), num_cells=5, channels=4)
    with model_context(darts.to_sample(text(TWICE))):
        theirs = DARTS(width=4, num_cells=5, dataset="cifar")
    theirs.load_state_dict(ours.state_dict())  # raises if a name or a shape differs
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_darts_samples_by_hand() -> None:
    sample = darts.to_sample(text(GENOTYPE))
    assert {key: sample[key] for key in ("normal_2_first", "normal_2_second")} == {
        "normal_2_first": "sep_conv_3x3",
        "normal_2_second": "dil_conv_5x5",
    }
    # The second node reads states 2 and 0; CellSpace names the lower one first.
    assert (sample["normal_3_inputs"], sample["normal_3_first"], sample["normal_3_second"]) == (
        "0+2",
        "max_pool_3x3",
        "skip_connect",
    )
    twice = darts.to_sample(text(TWICE))
    assert (twice["normal/op_2_0"], twice["normal/input_2_0"]) == ("sep_conv_3x3", [0])
    assert (twice["normal/op_2_1"], twice["normal/input_2_1"]) == ("dil_conv_5x5", [0])
    assert (twice["reduce/op_5_1"], twice["reduce/input_5_1"]) == ("sep_conv_3x3", [1])


def nds_row(space: str, genotype: dict[str, Any], width: int, num_cells: int) -> dict[str, Any]:
    return {"space": space, "arch": text(genotype), "width": str(width), "num_cells": str(num_cells)}


def five_nodes(operations: list[str]) -> dict[str, Any]:
    """Ten edges; nobody reads states 4 and 6 of the normal cell, nor 5 and 6 of the other."""
    normal = [0, 1, 2, 0, 1, 1, 2, 3, 5, 0]
    reduce = [1, 1, 0, 2, 3, 1, 0, 4, 3, 1]
    named = [operations[at % len(operations)] for at in range(10)]
    return {
        "normal": [list(pair) for pair in zip(named, normal, strict=True)],
        "normal_concat": [4, 6],
        "reduce": [list(pair) for pair in zip(reversed(named), reduce, strict=True)],
        "reduce_concat": [5, 6],
    }


PNAS = ["sep_conv_7x7", "conv_7x1_1x7", "dil_conv_3x3", "skip_connect", "max_pool_3x3"]
NASNET = ["conv_3x1_1x3", "conv_1x1", "conv_3x3", "max_pool_7x7", "sep_conv_7x7", "max_pool_5x5"]
AMOEBA = ["dil_sep_conv_3x3", "sep_conv_7x7", "conv_7x1_1x7", "skip_connect"]
EVERY = {"normal_concat": [2, 3, 4, 5, 6], "reduce_concat": [2, 3, 4, 5, 6]}
NDS_ROWS = {
    "DARTS": nds_row("DARTS", TWICE | {"reduce": [["none", 0], ["none", 1], *REDUCE[2:]]}, 48, 6),
    "ENAS": nds_row("ENAS", five_nodes(["sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3"]), 32, 10),
    "PNAS": nds_row("PNAS", five_nodes(PNAS) | EVERY, 64, 14),
    "NASNet": nds_row("NASNet", five_nodes(NASNET), 32, 6),
    "AmoebaNet": nds_row("AmoebaNet", five_nodes(AMOEBA), 96, 22),
    "Amoeba": nds_row("Amoeba", five_nodes(AMOEBA), 80, 18),
}


@pytest.mark.parametrize("name", list(NDS_ROWS))
def test_nds_is_the_network_of_the_row(name: str) -> None:
    row = NDS_ROWS[name]
    arch = nds.row_arch(row)
    width, num_cells = int(row["width"]), int(row["num_cells"])
    expected = cells_params(json.loads(row["arch"]), width, num_cells, "imagenet")
    assert tables.costs("nds", arch)["params"] == expected
    network = nds.build(arch)
    assert num_parameters(network) == cells_params(json.loads(row["arch"]), width // 4, num_cells, "cifar")
    assert len(inspect(network, 16).stages) == num_cells + 1


def test_nds_samples_by_hand() -> None:
    sample = nds.to_sample(nds.row_arch(NDS_ROWS["NASNet"]))
    assert (sample["normal/op_2_0"], sample["normal/input_2_0"]) == ("conv_3x1_1x3", [0])
    assert (sample["normal/op_6_0"], sample["normal/input_6_0"]) == ("conv_3x3", [5])
    assert (sample["reduce/op_3_1"], sample["reduce/input_3_1"]) == ("conv_3x1_1x3", [2])


def nasbench101_params(widths: list[int], kernels: list[int], channels: int = 128, *, from_input: list[int]) -> int:
    """A cell whose vertices have a share of the channels (as 1 / width) and a convolution of that kernel, or none (0).

    ``from_input`` are the vertices that read the input, each by a 1x1 convolution.
    """
    total, c_in, c = conv(3, channels, 3), channels, channels
    for stack in range(3):
        c *= 2 if stack else 1
        for _ in range(3):
            for vertex, (share, kernel) in enumerate(zip(widths, kernels, strict=True)):
                total += conv(c // share, c // share, kernel) if kernel else 0
                total += conv(c_in, c // share, 1) if vertex in from_input else 0
            c_in = c
    return total + c * 10 + 10


CHAIN = {"matrix": [[0, 1, 0], [0, 0, 1], [0, 0, 0]], "ops": [0, 4, 1]}
# Input to 1 (1x1) and 2 (3x3), both to the output; 1 to 3 (pooling), which leads nowhere.
FORK = {
    "matrix": [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "ops": [0, 3, 4, 2, 1],
}
# Input to 1 (3x3) to 2 (1x1) to the output.
TWO = {"matrix": [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], "ops": [0, 4, 3, 1]}


def test_nasbench101_is_the_network_of_the_row() -> None:
    assert nasbench101.to_sample(text(FORK)) == {
        "cell/num_nodes": 4,
        "cell/op1": "conv1x1-bn-relu",
        "cell/op2": "conv3x3-bn-relu",
        "cell/input1": [0],
        "cell/input2": [0],
        "cell/input3": [1, 2],
    }
    for cell, widths, kernels, from_input in (
        (CHAIN, [1], [3], [0]),
        (FORK, [2, 2], [1, 3], [0, 1]),
        (TWO, [1, 1], [3, 1], [0]),
    ):
        found = tables.costs("nasbench101", text(cell))["params"]
        assert found == nasbench101_params(widths, kernels, from_input=from_input), cell
    network = nasbench101.build(text(FORK))
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert nasbench101.path(text(FORK)) == 1
    assert nasbench101.path(text(TWO)) == 2


def micro_params(modules: str, cell: str, channels: int = 64, labels: int = 47) -> int:
    total = conv(3, channels // 2, 3) + conv(channels // 2, channels, 3)
    sources = [0, 0, 1, 0, 1, 2]
    for digit in modules:
        for first in (True, False):
            c_in, doubled = channels, first and digit in "24"
            channels *= 2 if doubled else 1
            changed = doubled or (first and digit in "34")
            for source, operation in zip(sources, cell, strict=True):
                inside = channels if source else c_in
                if operation in "23":
                    total += conv(inside, channels, 1 if operation == "2" else 3)
                elif operation == "1" and source == 0 and changed:
                    total += conv(inside, channels, 1)
    return total + channels * labels + labels


@pytest.mark.parametrize(("modules", "cell"), [("41414", "123012"), ("41414", "111111"), ("12341", "310213")])
def test_transnas_micro_is_the_network_of_the_row(modules: str, cell: str) -> None:
    arch = f"64-{modules}-{cell[0]}_{cell[1:3]}_{cell[3:]}"
    assert tables.costs("transnas_micro", arch)["params"] == micro_params(modules, cell)
    network = transnas_micro.build(arch)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert num_parameters(network) == micro_params(modules, cell, 16, 10)
    assert len(inspect(network, 16).stages) >= 10


def test_transnas_micro_by_hand() -> None:
    assert transnas_micro.to_sample("64-41414-1_23_012") == {
        "edge_0_1": "skip_connect",
        "edge_0_2": "conv_1x1",
        "edge_1_2": "conv_3x3",
        "edge_0_3": "none",
        "edge_1_3": "skip_connect",
        "edge_2_3": "conv_1x1",
    }
    x = torch.randn(2, 4, 6, 6)
    for cell, factor in (("1_01_001", 1), ("1_11_111", 4), ("0_10_111", 2), ("0_00_000", 0)):
        with model_context(transnas_micro.to_sample(f"64-41414-{cell}")):
            made = transnas_micro.Cell(4, 4, 1)
        torch.testing.assert_close(made(x), factor * x)
    with model_context(transnas_micro.to_sample("64-41414-0_00_000")):
        assert transnas_micro.Cell(4, 8, 2)(torch.randn(2, 4, 7, 7)).shape == (2, 8, 4, 4)
    assert transnas_micro.path("64-41414-3_03_002") == 3
    assert transnas_micro.path("64-41414-3_00_002") == 0  # nothing leads to state 2
    assert transnas_micro.path("64-41414-3_03_103") == 3


def macro_params(modules: str, channels: int, labels: int) -> int:
    total = conv(3, channels // 2, 3) + conv(channels // 2, channels, 3)
    for digit in modules:
        c_in, channels = channels, channels * (2 if digit in "24" else 1)
        total += conv(c_in, channels, 3) + 3 * conv(channels, channels, 3)
        total += conv(c_in, channels, 1) if digit != "1" else 0
    return total + channels * labels + labels


@pytest.mark.parametrize("modules", ["111114", "2341", "43414"])
def test_transnas_macro_is_the_network_of_the_row(modules: str) -> None:
    arch = f"64-{modules}-basic"
    assert tables.costs("transnas_macro", arch)["params"] == macro_params(modules, 64, 47)
    network = transnas_macro.build(arch)
    assert num_parameters(network) == macro_params(modules, 16, 10)
    structure = inspect(network, 16)
    last = structure.stages[-1]
    assert last.size[0] == 16 // 2 ** sum(digit in "34" for digit in modules)
    assert last.channels == 16 * 2 ** sum(digit in "24" for digit in modules)
    assert transnas_macro.to_sample(arch) == {"depth": len(modules)} | {
        f"module{at}": digit for at, digit in enumerate(modules)
    }


def test_transnas_macro_has_as_many_architectures_as_the_paper_says() -> None:
    def fits(modules: str) -> bool:
        try:
            transnas_macro.to_sample(f"64-{modules}-basic")
        except ValueError:
            return False
        return True

    words = [""]
    found = 0
    for length in range(1, 7):
        words = [word + digit for word in words for digit in "1234"]
        found += sum(map(fits, words)) if length > 3 else 0
    assert found == 3256


# ---- the tables themselves -----------------------------------------------------------------------------

COLUMNS = {"nasbench101": 1e6, "nds": 1}
"""What the column of the parameters is to be multiplied with."""


@pytest.mark.skipif(not os.environ.get("CSSNAS_DATA"), reason="CSSNAS_DATA names no folder of tables")
@pytest.mark.parametrize("name", ["nasbench101_dev", "nds_darts_dev", "nds_enas_dev", "nds_pnas_dev"])
def test_parameters_are_those_of_the_table(name: str) -> None:
    path = Path(os.environ["CSSNAS_DATA"]) / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    benchmark = tables.recognise(path)
    assert benchmark == name.split("_")[0]
    module = tables.adapter(benchmark)
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:: len(rows) // 3]:
        arch = nds.row_arch(row) if benchmark == "nds" else row["arch"]
        module.to_sample(arch)
        assert tables.costs(benchmark, arch)["params"] == round(float(row["params"]) * COLUMNS[benchmark]), row


# ---- ways through cells ---------------------------------------------------------------------------------


def test_longest_path_by_hand() -> None:
    edges = [(0, 2, 2), (1, 2, 1), (2, 3, 0), (0, 3, 2), (3, 4, 2), (4, 5, 1)]
    assert tables.longest_path(edges, [0, 1], [2, 3]) == 2
    assert tables.longest_path(reversed(edges), [0, 1], [5]) == 5
    assert tables.longest_path(edges, [1], [5]) == 4
    assert tables.longest_path([], [0], [5]) == 0


def test_paths_of_cells_by_hand() -> None:
    # Normal: 0 -sep- 2 -skip- 3 -sep- 4 -dil- 5 is 2 + 0 + 2 + 1; reduce: 1 -skip- 2 -sep- 3 -max- 4, or one sep, is 2.
    assert darts.path(text(GENOTYPE)) == 18 * 5 + 2 * 2
    row = nds_row("DARTS", GENOTYPE, 32, 10)
    assert nds.path(nds.row_arch(row)) == 8 * 5 + 2 * 2
    # Without its first edges, what reads state 2 brings nothing of the image.
    cut = GENOTYPE | {"normal": [["none", 0], ["none", 1], *NORMAL[2:]]}
    assert nds.path(nds.row_arch(nds_row("DARTS", cut, 32, 10))) == 8 * 3 + 2 * 2
    dense = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    assert nasbench201.path(dense) == 2


# ---- random architectures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("darts", None),
        ("darts", text(TWICE | {"reduce": TWICE["normal"]})),
        ("nasbench101", None),
        *[("nds", nds.row_arch(row)) for row in NDS_ROWS.values()],
        ("transnas_micro", "32-12345-0_00_000".replace("5", "4")),
        ("transnas_macro", None),
    ],
)
def test_random_architectures_are_of_the_space(name: str, like: str | None) -> None:
    module = tables.adapter(name)
    assert module.random_arch(np.random.default_rng(0), like) == module.random_arch(np.random.default_rng(0), like)
    rng = np.random.default_rng(1)
    drawn = [module.random_arch(rng, like) for _ in range(30)]
    assert len(set(drawn)) > 25
    for arch in drawn:
        module.to_sample(arch)
    if name == "nds" and like is not None:
        assert {json.loads(arch)["space"] for arch in drawn} == {json.loads(like)["space"]}
    if name == "darts":
        same = [json.loads(arch)["normal"] == json.loads(arch)["reduce"] for arch in drawn]
        assert all(same) if like else not any(same)
    with torch.no_grad():
        network: nn.Module = module.build(drawn[0])
        assert network(torch.zeros(2, 3, 16, 16)).shape[0] == 2


# ---- what is no architecture ------------------------------------------------------------------------------


def changed(where: str, value: Any, at: int | None = None) -> str:
    data = json.loads(text(GENOTYPE))
    if at is None:
        data[where] = value
    else:
        data[where][at] = value
    return text(data)


@pytest.mark.parametrize(
    ("name", "arch", "message"),
    [
        ("darts", "DARTS_V2", "is not a genotype as JSON"),
        ("darts", "[1]", "a genotype is a mapping"),
        ("darts", text({"normal": NORMAL}), "no lists 'normal' and 'normal_concat'"),
        ("darts", changed("normal", NORMAL[:6]), "the normal cell has 6 edges; 4 nodes have 8"),
        ("darts", changed("normal", ["conv_9x9", 0], 0), "edge 0 of the normal cell: unknown operation 'conv_9x9'"),
        ("darts", changed("normal", ["none", 0], 0), "unknown operation 'none'"),
        ("darts", changed("reduce", ["skip_connect", 3], 3), "edge 3 of the reduce cell leads from state 3 to 3"),
        ("darts", changed("normal", ["skip_connect"], 0), r"edge 0 of the normal cell is .*, and not"),
        ("darts", changed("normal_concat", [3, 4, 5]), r"normal_concat is \[3, 4, 5\]; the cells of DARTS"),
        ("darts", changed("normal_concat", [3, 3, 4, 5]), "must be distinct states from 2 to 5"),
        ("nasbench101", text({"ops": [0, 1]}), "no lists 'matrix' and 'ops'"),
        ("nasbench101", text({"matrix": [[0]], "ops": [0]}), "a cell of 1 vertices; the space has 2 to 7"),
        ("nasbench101", text(CHAIN | {"ops": [0, 5, 1]}), "ops are"),
        ("nasbench101", text(CHAIN | {"matrix": [[0, 1], [0, 0]]}), "the matrix is not 3 x 3"),
        ("nasbench101", text(CHAIN | {"matrix": [[0, 1, 0], [1, 0, 1], [0, 0, 0]]}), "only above the diagonal"),
        ("nasbench101", text(CHAIN | {"matrix": [[0, 1, 0], [0, 0, 0], [0, 0, 0]]}), "no way leads from the input"),
        (
            "nasbench101",
            text({"matrix": np.triu(np.ones((7, 7), int), 1).tolist(), "ops": [0, 2, 2, 2, 2, 2, 1]}),
            "a cell of 21 edges; the space has at most 9",
        ),
        ("transnas_micro", "64-41414-4_00_000", "is not of the form 64-41414-a_bc_def"),
        ("transnas_micro", "64-111114-basic", "is not of the form 64-41414-a_bc_def"),
        ("transnas_macro", "64-41414-0_00_000", "is not of the form 64-111114-basic"),
        ("transnas_macro", "64-111113-basic", "0 modules double the channels; the space has 1 to 3"),
        ("transnas_macro", "64-22224-basic", "5 modules double the channels"),
        ("transnas_macro", "64-1112-basic", "0 modules halve the resolution; the space has 1 to 4"),
    ],
)
def test_what_the_space_does_not_hold(name: str, arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tables.adapter(name).to_sample(arch)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "ResNet"}, "unknown space 'ResNet'"),
        ({"space": "PNAS"}, "unknown operation 'conv_3x1_1x3'|5 nodes"),
        ({"width": ""}, "no column 'width', which NDS's networks need"),
        ({"width": "3.5"}, "width is '3.5'; it must be a whole number"),
        ({"num_cells": "2"}, "width is 32 and num_cells 2; at least 2 and 3"),
        ({"arch": "["}, "is not a genotype as JSON"),
        ({"arch": "[]"}, "is not a genotype"),
        ({"arch": text(five_nodes(NASNET) | {"normal_concat": [6]})}, r"normal_concat is \[6\]; NASNet concatenates"),
    ],
)
def test_what_nds_does_not_hold(change: dict[str, str], message: str) -> None:
    row = NDS_ROWS["NASNet"] | change
    with pytest.raises(ValueError, match=message) as caught:
        nds.to_sample(nds.row_arch(row))
    assert len(str(caught.value).splitlines()) == 1


# ---- which table it is --------------------------------------------------------------------------------


def test_a_table_is_known_by_its_first_row(tmp_path: Path) -> None:
    cell = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
    first = {
        "nasbench201": {"arch": cell, "cifar10_test": 90},
        "nasbench_macro": {"arch": "01201201", "cifar10_test": 90},
        "nasbench101": {"arch": text(CHAIN), "cifar10_val": 90},
        "nds": NDS_ROWS["DARTS"] | {"imagenet_top1": 60},
        "darts": {"arch": text(GENOTYPE), "svhn_top1": 90},
        "transnas_micro": {"arch": "64-41414-0_00_013", "jigsaw": 90},
        "transnas_macro": {"arch": "64-111114-basic", "normal": 0.5, "class_scene": 50},
    }
    assert set(first) == set(tables.BENCHMARKS)
    expected = {
        "nasbench101": ["cifar10_val"],
        "nds": ["imagenet_top1"],
        "darts": ["svhn_top1"],  # none that the module names, but an accuracy by its name's end
        "transnas_micro": ["jigsaw"],
        "transnas_macro": ["class_scene", "normal"],
    }
    for name, row in first.items():
        path = write_table(tmp_path / f"{name}.csv", [row])
        assert tables.recognise(path) == name
        assert tables.truths_of(path, name) == expected.get(name, ["cifar10_test"])
    assert tables.recognise(write_table(tmp_path / "other.csv", [{"arch": "resnet", "cifar10_test": 1}])) is None
    assert tables.recognise(write_table(tmp_path / "notes.csv", [{"a": 1}])) is None


def test_losses_may_be_any_number_and_accuracies_may_not(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [{"arch": "64-111114-basic", "room_layout": -0.7, "cifar10_test": -0.7}])
    (entry,) = tables.read_table(path, transnas_macro.to_sample, "room_layout")
    assert entry.accuracy == -0.7
    with pytest.raises(ConfigError, match="must be a percentage"):
        tables.read_table(path, transnas_macro.to_sample, "cifar10_test")
    path = write_table(tmp_path / "t.csv", [{"arch": "64-111114-basic", "room_layout": "inf"}])
    with pytest.raises(ConfigError, match=r"line 2: room_layout is 'inf'; it must be a finite number"):
        tables.read_table(path, transnas_macro.to_sample, "room_layout")


def test_a_row_that_the_space_does_not_hold_is_named(tmp_path: Path) -> None:
    rows = [NDS_ROWS["ENAS"] | {"imagenet_top1": 60}, NDS_ROWS["ENAS"] | {"width": "x", "imagenet_top1": 60}]
    path = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(ConfigError, match=r"t\.csv, line 3: width is 'x'"):
        tables.read_table(path, nds.to_sample, "imagenet_top1", nds.row_arch)
    # One genotype in two sizes is two architectures; the same row twice is one.
    path = write_table(tmp_path / "t.csv", [rows[0], rows[0] | {"width": "64"}])
    assert len(tables.read_table(path, nds.to_sample, "imagenet_top1", nds.row_arch)) == 2
    path = write_table(tmp_path / "t.csv", [rows[0], rows[0]])
    with pytest.raises(ConfigError, match="was already named in line 2"):
        tables.read_table(path, nds.to_sample, "imagenet_top1", nds.row_arch)
