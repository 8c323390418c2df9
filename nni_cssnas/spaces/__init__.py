"""What can be searched."""

from nni_cssnas.spaces.cell import CellSpace
from nni_cssnas.spaces.encoding import decode, encode, random_choices, search_space
from nni_cssnas.spaces.factory import make_space
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["CellNetwork", "CellSpace", "decode", "encode", "make_space", "random_choices", "search_space"]
