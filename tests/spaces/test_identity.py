"""What a space is known by, and the code that measures: a screening goes on only with what it began with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nni_cssnas import CellSpace
from nni_cssnas.spaces import identity
from nni_cssnas.spaces.identity import MEASURED_BY, own_sources, space_key

SPACE = """
import nni
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from {layers} import block

class Own(ModelSpace):
    def __init__(self, width=8, activation=None):
        super().__init__()
        self.stem = block(3, width)
        self.body = LayerChoice([nn.Conv2d(width, width, 3), nn.Conv2d(width, width, {kernel})], label="body")
"""
LAYERS = """
from torch import nn

def block(w_in, w_out):
    return nn.Conv2d(w_in, w_out, {kernel})
"""
ASK = """
import json, sys
from nni_cssnas.spaces.identity import space_key
for folder, arguments in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    import space_x, layers_x
    print(space_key(space_x.Own(**eval(arguments))))
    sys.path.remove(folder)
    del sys.modules["space_x"], sys.modules["layers_x"]
"""


def asked(*spaces: tuple[Path, str]) -> list[str]:
    """The keys of the spaces in these folders, made with these arguments, as another process sees them."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        ASK,
        json.dumps([(str(folder), given) for folder, given in spaces]),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-len(spaces) :]


def written(folder: Path, kernel: int = 5, layer: int = 1, more: str = "") -> Path:
    folder.mkdir()
    (folder / "space_x.py").write_text(SPACE.format(layers="layers_x", kernel=kernel))
    (folder / "layers_x.py").write_text(LAYERS.format(kernel=layer) + more)
    return folder


@pytest.mark.slow
def test_an_edited_space_has_another_key(tmp_path: Path) -> None:
    first = written(tmp_path / "first")
    same = written(tmp_path / "same")
    (same / "unrelated.py").write_text("x = 1\n")
    others = [
        (first, "{'width': 16}"),
        (written(tmp_path / "candidates", kernel=7), "{}"),  # the candidates have the same numbers
        (written(tmp_path / "layers", layer=3), "{}"),  # only a module that the space's imports
    ]
    spaces = [(first, "{}"), (same, "{}"), *others]
    keys = asked(*spaces)
    assert keys == asked(*spaces)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


@pytest.mark.slow
def test_an_object_among_the_arguments_has_no_address_in_the_key(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", more="class Act:\n    def __init__(self, a): self.a = a\n")
    spaces = [(folder, f"{{'activation': layers_x.Act({value})}}") for value in (1, 1, 2)]
    keys = asked(*spaces)
    assert " at 0x" not in keys[0]
    assert keys[0] == keys[1] != keys[2]


def test_plain_values() -> None:
    class Loop:
        def __init__(self) -> None:
            self.me = self

    assert " at 0x" not in json.dumps(identity._plain(Loop()))
    values: list[Any] = [None, True, 1, 1.5, "x", [1, (2,)], {"a": {3, 1}}, len, int, Path("x"), b"y", object()]
    assert json.dumps(identity._plain(values)) == json.dumps(identity._plain(values))


def test_a_cell_space_is_known_by_its_choices_and_arguments() -> None:
    def key(**arguments: Any) -> str:
        return space_key(CellSpace(**{"num_nodes": 4, "num_cells": 3, "channels": 4} | arguments))

    assert key() == key()
    assert len({key(), key(channels=8), key(encoding="edge"), key(operations=("skip_connect", "sep_conv_3x3"))}) == 4


def test_our_own_code_is_known_by_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in MEASURED_BY:
        assert (identity.PACKAGE / name).exists(), name
    before = own_sources()
    assert before == own_sources.__wrapped__()
    for name in MEASURED_BY:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("") if path.suffix else path.mkdir()
    (tmp_path / "scores" / "new.py").write_text("")
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    assert own_sources.__wrapped__() != before


INTERACTIVE = """
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

class Layer(nn.Module):
    def forward(self, images):
        return images * {factor} if images.dtype in {{torch.float32, torch.float64}} else images

class Own(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = Layer()
        self.body = LayerChoice([nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, {kernel})], label="body")
"""


def test_a_space_of_a_notebook_is_known_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # it has no file

    def key(factor: int = 2, kernel: int = 5) -> str:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(INTERACTIVE.format(factor=factor, kernel=kernel), names)
        return space_key(names["Own"]())

    assert key() == key()
    assert key(kernel=7) != key()
    assert key(factor=3) != key()  # only a layer's code
