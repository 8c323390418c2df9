"""Square crops of the photographs that ship inside the wheels of scikit-image and scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nni_cssnas.errors import ImagesError

__all__ = ["PHOTOGRAPHS", "cut", "photographs"]

# The colour photographs. Left out: drawings, scans, micrographs, the sky, textures in grey, and the right half of the
# stereo pair motorcycle_left / motorcycle_right.
PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
# Edges of the windows in pixels of the photograph (their shorter sides are 300 to 512). Smaller ones show no more than
# a patch of one colour or texture.
EDGES = (64, 80, 96, 128, 160, 192, 224, 256, 300)
# A window moves on by a third of its edge, but by no more than this: of the large ones there would be only a few.
LONGEST_STRIDE = 40
# Least standard deviation of a tile's luma, and least mean, in 8-bit levels: sky, walls and shadows are left out.
LEAST_DEVIATION = 16.0
LEAST_MEAN = 24.0


def photographs() -> list[Path]:
    """The photographs' files. Neither library is imported: that takes a second.

    Raises
    ------
    ImagesError
        If one of them is not there.
    """
    paths = []
    for module, names in PHOTOGRAPHS.items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ImagesError(
                f"images.source 'tiles' needs the photographs of {DISTRIBUTIONS[module]}, which is not installed; "
                f"pip install {DISTRIBUTIONS[module]}"
            )
        folder = Path(spec.submodule_search_locations[0]) / FOLDERS[module]
        paths += [folder / name for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ImagesError(
            f"images.source 'tiles' needs {', '.join(missing)}, which scikit-image and scikit-learn ship; "
            "reinstall them, or give a folder of images"
        )
    return paths


def cut(size: int) -> NDArray[np.uint8]:
    """All tiles, in an order that mixes photographs and scales.

    A window is made smaller with antialiasing and never larger, except that windows of the two largest
    edges are always taken.

    Returns
    -------
    ndarray
        uint8, (num_tiles, 3, size, size); num_tiles falls with ``size``.
    """
    tiles = []
    for path in photographs():
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        width, height = photograph.size
        for box in _windows(width, height, size):
            tile = photograph.resize((size, size), Image.Resampling.BICUBIC, box=box)
            luma = np.asarray(tile.convert("L"), dtype=np.float32)
            if luma.std() >= LEAST_DEVIATION and luma.mean() >= LEAST_MEAN:
                tiles.append(np.asarray(tile).transpose(2, 0, 1))
    # Multiples of the golden ratio instead of a random generator: neighbours end up far apart, every part of the
    # result holds all photographs, and no version of any library can change it.
    order = np.argsort(np.arange(len(tiles), dtype=np.uint64) * np.uint64(2654435769) % np.uint64(2**32), kind="stable")
    return np.stack(tiles)[order]


def _windows(width: int, height: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    for edge in EDGES:
        if (edge < size and edge not in EDGES[-2:]) or edge > min(width, height):
            continue
        stride = min(edge // 3, LONGEST_STRIDE)
        for top in range(0, height - edge + 1, stride):
            for left in range(0, width - edge + 1, stride):
                yield left, top, left + edge, top + edge
