from __future__ import annotations

import os

import pytest

# Two cores are shared with whatever else runs; one thread makes times and bits repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no process is left with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images go to a folder of the test run, never to the user's cache."""
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
