"""What ``import nni`` loads for things that a search hardly ever does; here it is loaded when they are done.

Without it an ``import nni`` takes a quarter of its processor time, and an evaluator starts in half the time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["defer_libraries", "no_one_shot"]


def defer_libraries() -> None:
    """Let NNI load pandas, scipy.stats and pytorch-lightning when they are first used.

    Nothing is imported here. Modules of NNI that are imported already are as they are.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MEANWHILE:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute, meanwhile = spec.loader.exec_module, _MEANWHILE[fullname]

            def exec_module(module: ModuleType) -> None:
                with meanwhile(module):
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _scipy_stats(module: ModuleType) -> AbstractContextManager[None]:
    """Whose distributions only ``Numerical`` uses."""
    return _in_place_of("scipy.stats", {"norm", "lognorm", "uniform", "loguniform"})


def _pandas(module: ModuleType) -> AbstractContextManager[None]:
    """Of which is asked only whether it is there; what writes and reads its tables imports it again."""
    return _in_place_of("pandas", set())


@contextmanager
def _lightning(module: ModuleType) -> Iterator[None]:
    """Which is loaded for names that this module has of another one."""
    import nni
    from nni.common.framework import get_default_framework, shortcut_framework

    framework = get_default_framework()
    nni.set_default_framework("none")
    try:
        yield
    finally:
        nni.set_default_framework(framework)

    _load_when_asked(module, lambda: shortcut_framework(module.__name__))


@contextmanager
def _one_shot(module: ModuleType) -> Iterator[None]:
    """Strategies that come with pytorch-lightning."""
    name = f"{module.__name__}.oneshot"
    with _in_place_of(name, set(ONE_SHOT)):
        yield
    for strategy in ONE_SHOT:
        delattr(module, strategy)

    def load() -> None:
        real = import_module(name)
        module.__dict__.update({strategy: getattr(real, strategy) for strategy in ONE_SHOT})

    _load_when_asked(module, load)


ONE_SHOT = ("DARTS", "ENAS", "GumbelDARTS", "Proxyless", "RandomOneShot")
"""What :mod:`nni.nas.strategy` has of :mod:`nni.nas.strategy.oneshot`."""

_MEANWHILE: dict[str, Callable[[ModuleType], AbstractContextManager[None]]] = {
    "nni.mutable.mutable": _scipy_stats,
    "json_tricks.nonp": _pandas,
    "nni.nas.evaluator": _lightning,
    "nni.nas.strategy": _one_shot,
}
"""What holds while a module is executed."""


@contextmanager
def no_one_shot() -> Iterator[None]:
    """While a configuration is made, for which NNI asks whether a strategy is a one-shot one: none is, if none is loaded."""
    name = "nni.nas.oneshot"
    if name in sys.modules:
        yield
        return
    name += ".pytorch.strategy"
    stand_in = ModuleType(name)
    stand_in.OneShotStrategy = ()  # type: ignore[attr-defined]
    stand_in.is_supernet = lambda space: False  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _in_place_of(library: str, functions: set[str]) -> Iterator[None]:
    """What is imported by that name meanwhile is a stand-in, which serves whoever else gets hold of it, as another thread."""
    if library in sys.modules or find_spec(library.partition(".")[0]) is None:
        yield
        return
    stand_in = _StandIn(library, functions)
    sys.modules[library] = stand_in
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """A module in whose place the library comes when anything is used of it but the ``functions``, which wait for a call."""

    def __init__(self, name: str, functions: set[str]) -> None:
        super().__init__(name)
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        _refuse_special(self, name)
        return _Function(self, name) if name in self._functions else getattr(self.library(), name)

    def library(self) -> ModuleType:
        self.leave()
        return import_module(self.__name__)

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Function:
    """A function of the library, which is loaded when it is called or an attribute of it is asked for."""

    def __init__(self, stand_in: _StandIn, name: str) -> None:
        self._stand_in = stand_in
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._stand_in.library(), self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._stand_in.library(), self._name), name)


def _load_when_asked(module: ModuleType, load: Callable[[], None]) -> None:
    """Let the module get more names when one is asked for that it has not, or all of them (``import *``)."""

    def find(name: str) -> Any:
        if name != "__all__":
            _refuse_special(module, name)
        load()  # another thread that asks waits for the same import
        module.__dict__.pop("__getattr__", None)
        return getattr(module, name)

    module.__getattr__ = find  # type: ignore[method-assign]


def _refuse_special(module: ModuleType, name: str) -> None:
    """Python's own machinery asks for such names, to learn what kind of module this is."""
    if name.startswith("__"):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
