"""Which files of a folder count; the trees are made on the spot, real pictures only where their content matters."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image, features

from nni_cssnas.images import listing, read
from nni_cssnas.images.listing import image_files, is_hidden


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.datasets.folder import make_dataset

    names = ["b.png", "a/z.jpg", "a/b/c.jpg", "a-b/d.jpg", "A.JPG", "a.jpg", "é.png", "a/b.jpeg"]
    touch(tmp_path, *names)
    oracle = [path for path, _ in make_dataset(str(tmp_path), {"": 0}, extensions=(".png", ".jpg", ".jpeg"))]
    found = image_files(tmp_path)
    assert [str(tmp_path / name) for name in found.names] == oracle
    assert found.passed_over() == ""


def test_what_is_hidden_never_counts_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "cat/b.jpg", ".dot.jpg", "._a.jpg", "Thumbs.db", "cat/._b.jpg", "cat/Thumbs.db")
    for hidden in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir"):
        touch(tmp_path, f"{hidden}/x.jpg", f"cat/deeper/{hidden}/x.jpg", f"cat/{hidden}/deep/x.jpg")
    found = image_files(tmp_path)
    assert found.names == ("a.jpg", "cat/b.jpg")
    assert found.passed_over() == ""
    assert is_hidden(".x")
    assert not is_hidden("__x")


def test_a_hidden_folder_that_is_named_itself_counts(tmp_path: Path) -> None:
    touch(tmp_path, ".photos/a.jpg")
    assert image_files(tmp_path / ".photos").names == ("a.jpg",)


def test_each_file_once(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.png" for number in range(5)), "sub/x.png")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "sub" / "up").symlink_to("..")
    (tmp_path / "0-link.png").symlink_to("1.png")
    (tmp_path / "a-sub").symlink_to("sub")
    os.link(tmp_path / "2.png", tmp_path / "3-hard.png")
    found = image_files(tmp_path)
    assert found.names == ("0.png", "1.png", "2.png", "3.png", "4.png", "sub/x.png")
    assert found.repeated == (("0-link.png", "1.png"), ("3-hard.png", "2.png"))
    assert sorted(found.repeated_folders) == [("a-sub", "sub"), ("loop", "."), ("sub/up", ".")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found.warn()
    assert len(caught) == 1
    assert "2 repeated files: 0-link.png is 1.png, 3-hard.png is 2.png" in str(caught[0].message)
    assert "3 repeated folders: " in str(caught[0].message)


def test_links_to_what_is_elsewhere_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "data/deep/a.jpg", "data/b.jpg", "c.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "all").symlink_to("../data")
    (tmp_path / "photos" / "c.jpg").symlink_to("../c.jpg")
    assert image_files(tmp_path / "photos").names == ("c.jpg", "all/b.jpg", "all/deep/a.jpg")


def test_only_files_are_opened(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.heic")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    found = image_files(tmp_path)
    # Where Pillow reads .heic (pillow-heif is installed), its ending alone makes it an image.
    heif = read.HEIF_ENDINGS[0] in read.endings()
    assert found.special == (("pipe.heic", "pipe.png") if heif else ("pipe.png",))
    # They are named with all other files that cannot be read.
    assert found.names == ("a.png", "dangling.png", "self.png")
    assert re.search(r"pipes?, sockets? or devices?: .*pipe.png", found.passed_over())


def test_what_is_passed_over_is_counted_by_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_heif = frozenset(read.endings()) - {*read.HEIF_ENDINGS}
    monkeypatch.setattr(listing, "_endings", lambda: without_heif)
    touch(tmp_path, "a.jpg", "b.heic", "c.HEIC", "LICENSE", *(f"{n}.xyz" for n in range(3)))
    Image.new("RGB", (8, 8)).save(tmp_path / "real.HEIC", format="JPEG")
    found = image_files(tmp_path)
    assert dict(found.others) == {".heic": 2, "": 1, ".xyz": 3}
    assert found.names == ("a.jpg", "real.HEIC")
    assert found.passed_over() == (
        "6 files of other kinds: 3 .xyz, 2 .heic, 1 without ending (to read .heic: pip install pillow-heif)"
    )
    assert read.load(tmp_path / "real.HEIC", 8).shape == (3, 8, 8)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = image_files(tmp_path)
    assert found.names == ("a.jpg",)
    assert found.passed_over() == "1 folder that may not be read: closed"


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp", ".bmp", ".jp2", ".avif", ".qoi", ".pgm", ".jfif"])
def test_what_this_pillow_reads_counts(ending: str, tmp_path: Path) -> None:
    built_in = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"}
    readable = ending not in built_in or bool(features.check(built_in[ending]))
    assert (ending in read.endings()) == readable
    if readable and Image.registered_extensions()[ending] in Image.SAVE:  # the oldest Pillow reads .qoi and writes none
        Image.new("L" if ending == ".pgm" else "RGB", (16, 16), 100 if ending == ".pgm" else (100,) * 3).save(
            tmp_path / f"a{ending}"
        )
        assert abs(read.load(tmp_path / f"a{ending}", 8).astype(int) - 100).max() <= 2


def test_what_is_no_picture_does_not_count() -> None:
    assert not {".eps", ".ps", ".h5", ".hdf", ".grib", ".mpg", ".mpeg", ".wmf", ".emf", ".pdf"} & set(read.endings())
    assert "EPS" not in read.formats()


def test_pillow_heif_is_used_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of its name and interface stands for it; the real one needs libheif."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "class Heif(PngImagePlugin.PngImageFile):\n    format = 'HEIF'\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda prefix: prefix[1:4] == b'PNG')\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    # Pillow's registries and what was found in them are put back afterwards.
    for name in ("OPEN", "EXTENSION", "ID"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    for module, name in ((read, "formats"), (read, "endings"), (listing, "_endings")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "photos" / "a.heic", format="PNG")
    assert "HEIF" in read.formats()
    assert image_files(tmp_path / "photos").names == ("a.heic",)
    assert (read.load(tmp_path / "photos" / "a.heic", 8) == 9).all()
