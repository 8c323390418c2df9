from __future__ import annotations

import numpy as np
import pytest

from nni_cssnas.config import SpaceConfig
from nni_cssnas.errors import SpaceError
from nni_cssnas.spaces import CellSpace, decode, make_space, random_parameters, search_space
from nni_cssnas.spaces.primitives import ModelSpace, choice


class NoChoice(ModelSpace):  # type: ignore[misc]
    """A space with nothing to search."""


class OneValue(ModelSpace):  # type: ignore[misc]
    """A space with a choice of one value beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.add_mutable(choice("fixed", [3]))
        self.add_mutable(choice("width", [8, 16]))


def test_a_space_without_choice_is_refused() -> None:
    with pytest.raises(SpaceError, match="NoChoice has no choice"):
        search_space(NoChoice())


def test_choices_of_one_value_are_not_searched_but_decoded() -> None:
    space = OneValue()
    assert search_space(space) == {"width": {"_type": "choice", "_value": [8, 16]}}
    assert decode(space, {"width": 16}) == {"fixed": 3, "width": 16}


def test_decode_refuses_what_the_space_does_not_have() -> None:
    space = CellSpace(num_nodes=4, num_cells=3, channels=4)
    parameters = random_parameters(space, np.random.default_rng(0))
    assert decode(space, parameters) == parameters
    with pytest.raises(
        SpaceError, match=r"no choice 'normal_2_frist'; did you mean 'normal_2_first'.*nni-cssnas space"
    ):
        decode(space, parameters | {"normal_2_frist": "skip_connect"})
    with pytest.raises(SpaceError, match="has no value"):
        decode(space, {})
    with pytest.raises(SpaceError, match="did you mean 'skip_connect'"):
        decode(space, parameters | {"normal_2_first": "skip_conect"})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no_such_module_x:Space", {}, "cannot import module 'no_such_module_x'"),
        ("nni_cssnas.spaces:CelSpace", {}, "did you mean 'CellSpace'"),
        ("nni.nas.hub.pytorch:NasBench201", {"no_such": 1}, "cannot be made with"),
        ("nni_cssnas.genotype:Genotype.parse", {}, "has no 'Genotype.parse'"),
        ("collections:OrderedDict", {}, "is no NNI ModelSpace"),
    ],
)
def test_make_space_explains(name: str, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        make_space(SpaceConfig(name=name, arguments=arguments))


def test_make_space_makes_a_hub_space() -> None:
    space = make_space(SpaceConfig(name="nni.nas.hub.pytorch:NasBench201"))
    assert len(search_space(space)) == 6
