"""The cache of decoded images: damage, full disks, concurrent and killed writers."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from nni_cssnas.images import cache
from nni_cssnas.images.cache import cache_folder, resident


class Counting:
    """A maker of 10 images in blocks of 4 that counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0
        self.images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)

    def __call__(self):
        self.calls += 1
        for start in range(0, 10, 4):
            yield self.images[start : start + 4]


@pytest.fixture
def make() -> Counting:
    return Counting()


def get(make, folder, key="x") -> torch.Tensor:
    return resident({"key": key}, make, kind="test", size=8, cache_dir=folder)


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_made_once_and_mapped(make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = get(make, tmp_path), get(make, tmp_path)
    assert make.calls == 1
    assert first.dtype == torch.uint8
    assert first.is_contiguous()
    assert np.array_equal(first.numpy(), make.images)
    assert torch.equal(first, second)
    # It is a plain .npy, readable by anyone.
    assert np.array_equal(np.load(file_of(tmp_path)), make.images)
    assert file_of(tmp_path).name.startswith("test-8px-")
    if Path("/proc/self/maps").exists():
        assert str(file_of(tmp_path)) in Path("/proc/self/maps").read_text()
    assert len(get(make, tmp_path, key="another")) == 10
    assert make.calls == 2


def test_writing_to_the_tensor_reaches_nobody(make, tmp_path):
    get(make, tmp_path).zero_()
    assert np.array_equal(get(make, tmp_path).numpy(), make.images)


@pytest.mark.parametrize(
    "damage",
    ["short", "long", "empty", "garbage", "dtype", "shape", "size", "pickle", "bit", "header", "checksum", "pipe"],
)
def test_a_damaged_file_is_made_again(make, tmp_path, damage):
    get(make, tmp_path)
    path = file_of(tmp_path)
    content = path.read_bytes()
    if damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "long":
        path.write_bytes(content + b"\0")
    elif damage in ("bit", "checksum"):
        # A pixel in the middle of the file, and the end of it.
        position = len(content) // 2 if damage == "bit" else len(content) - 3
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
    elif damage == "header":
        path.write_bytes(content.replace(b"}", b"{", 1))  # numpy's own error for it is neither of value nor of syntax
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\x93NUMPY\x01\x00garbage" * 20)
    elif damage == "dtype":
        np.save(path, make.images.astype(np.int16))
    elif damage == "shape":
        np.save(path, make.images[0])
    elif damage == "size":
        np.save(path, make.images[..., :4, :4])
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.warns(UserWarning, match="damaged .* made again"):
        images = get(make, tmp_path)
    assert make.calls == 2
    assert np.array_equal(images.numpy(), make.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(make, tmp_path)
    assert make.calls == 2


def test_a_folder_that_cannot_be(make, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="Set NNI_CSSNAS_CACHE to a writable folder") as caught:
        images = get(make, tmp_path / "file" / "cache")
    assert len(caught) == 1
    assert np.array_equal(images.numpy(), make.images)


def test_a_folder_in_the_files_place(make, tmp_path):
    get(make, tmp_path)
    path = file_of(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=r"damaged \(not a file\)|cannot be kept in .*directory") as caught:
        images = get(make, tmp_path)
    assert len(caught) == 2
    assert np.array_equal(images.numpy(), make.images)


def test_who_waits_says_for_whom(tmp_path):
    (child,) = start(tmp_path, 1, 1.5)
    wait_for(tmp_path, "made-*", 1)
    (lock,) = (tmp_path / "cache").glob("*.lock")
    with ExitStack() as held:
        with pytest.warns(UserWarning, match=rf"waiting for process {child.pid} on .*, which holds {lock}"):
            held.enter_context(cache.locked(lock, patience=0.1))
        # The other one let it go when its file was written.
        assert list((tmp_path / "cache").glob("*.npy"))
        assert (tmp_path / "cache" / f"{lock.name}.owner").read_text().startswith(f"process {os.getpid()} on ")
    assert not list((tmp_path / "cache").glob("*.owner"))
    assert child.wait(30) == 0


def test_a_lock_that_cannot_be_is_an_oserror(tmp_path):
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(OSError, match="directory"), cache.locked(tmp_path / "a.lock"):
        pytest.fail("held")


@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.ENOSYS])
def test_a_drive_without_locks_is_used_without(make, tmp_path, monkeypatch, error):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cache.locked(tmp_path / "a.lock", patience=0.1):
            (tmp_path / "done").touch()
    assert (tmp_path / "done").exists()
    assert not list(tmp_path.glob("*.owner"))


def test_a_full_disk(make, tmp_path, monkeypatch):
    def full(*args) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left on device.*NNI_CSSNAS_CACHE"):
        images = get(make, tmp_path)
    assert np.array_equal(images.numpy(), make.images)
    assert not list(tmp_path.glob("*.npy"))
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("space", [0, 100, 900, 1900])
def test_a_disk_that_is_full_at_any_byte(make, tmp_path, space):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"cannot be kept.*NNI_CSSNAS_CACHE"):
            images = get(make, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(images.numpy(), make.images)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_finished_file_needs_no_write_access(make, tmp_path, monkeypatch):
    get(make, tmp_path)
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("written to"))
    monkeypatch.setattr(cache, "locked", lambda path: pytest.fail("locked"))
    get(make, tmp_path)


def test_an_error_of_the_maker_leaves_nothing(tmp_path):
    def fail():
        yield np.zeros((1, 3, 8, 8), np.uint8)
        raise FileNotFoundError("the maker's own")

    with pytest.raises(FileNotFoundError, match="the maker's own"):
        get(fail, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_what_a_killed_writer_left_is_removed(make, tmp_path):
    get(make, tmp_path)
    path = file_of(tmp_path)
    path.unlink()
    stale = path.with_name(f".{path.name}.123.tmp")
    stale.write_bytes(b"half")
    get(make, tmp_path)
    assert not stale.exists()


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "a"
    monkeypatch.setenv("NNI_CSSNAS_CACHE", "")
    assert cache_folder() == tmp_path / "b" / "nni_cssnas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "nni_cssnas"


CHILD = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    from nni_cssnas.images.cache import resident

    folder = Path(sys.argv[1])

    def make():
        (folder / f"made-{os.getpid()}").touch()
        yield np.full((2, 3, 8, 8), 7, np.uint8)
        time.sleep(float(sys.argv[2]))
        yield np.full((2, 3, 8, 8), 7, np.uint8)

    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    images = resident({}, make, kind="test", size=8, cache_dir=folder / "cache")
    assert images.shape == (4, 3, 8, 8) and (images == 7).all()
    """
)


def start(folder: Path, count: int, seconds: float) -> list[subprocess.Popen]:
    children = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD, str(folder), str(seconds)]) for _ in range(count)
    ]
    wait_for(folder, "ready-*", count)
    (folder / "go").touch()
    return children


def wait_for(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_that_start_together_decode_once(tmp_path):
    children = start(tmp_path, 3, 0.5)
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_a_killed_writer_blocks_nobody(tmp_path):
    (child,) = start(tmp_path, 1, 60)
    wait_for(tmp_path, "made-*", 1)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    images = resident(
        {}, lambda: iter([np.full((4, 3, 8, 8), 7, np.uint8)]), kind="test", size=8, cache_dir=tmp_path / "cache"
    )
    assert images.shape == (4, 3, 8, 8)
    assert not list((tmp_path / "cache").glob(".*.tmp"))
