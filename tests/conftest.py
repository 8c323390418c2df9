from __future__ import annotations

import gc
import logging
import os
import secrets
from collections.abc import Iterator

import nni  # noqa: F401  its import sets the level of its logger
import pytest

# Two cores are shared with whatever else runs; one thread makes times and bits repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray takes its token once a process, from HOME, which tests change, and says so to its own processes by the environment,
# which tests restore: both for the whole process, here.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Hundreds of thousands of objects of torch and NNI live as long as this process: to look through them takes a twentieth of it.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no process is left with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images go to a folder of the test run, never to the user's cache."""
    monkeypatch.setenv("NNI_CSSNAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def _logging() -> dict[str, object]:
    """What decides whether a warning of ours is heard."""
    names = ("nni", "nni.tuner", "nni.tuner.cssnas")
    return {"disable": logging.root.manager.disable} | {
        f"{name}: {attribute}": getattr(logging.getLogger(name), attribute)
        for name in names
        for attribute in ("level", "propagate", "disabled")
    }


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that silences a logger names itself, and not the next one that listens."""
    before = _logging()
    yield
    now = _logging()
    logging.disable(int(str(before["disable"])))
    for key, value in before.items():
        name, _, attribute = key.partition(": ")
        if attribute == "level":
            logging.getLogger(name).setLevel(int(str(value)))
        elif attribute:
            setattr(logging.getLogger(name), attribute, value)
    assert {key: now[key] for key in now if now[key] != before[key]} == {}
