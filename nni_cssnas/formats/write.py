"""Writing a network as a file, and checking that the file computes what the network does."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_cssnas.base.modules import evaluation_mode
from nni_cssnas.errors import ConfigError, ExportError, nearest, printable
from nni_cssnas.formats.cells import cell_source
from nni_cssnas.formats.names import FORMATS
from nni_cssnas.formats.traced import traced_source
from nni_cssnas.spaces.network import CellNetwork

__all__ = ["TOLERANCE", "Exported", "export", "load_weights"]

TOLERANCE = 1e-4
"""Largest absolute difference of a logit between the file and the network."""


@dataclass(frozen=True)
class Exported:
    """One file: ``difference`` is the largest of a logit to the network's, None where nothing is computed."""

    path: Path
    size: int
    difference: float | None


def export(
    network: nn.Module,
    path: Path,
    format: str,
    *,
    size: int = 32,
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Exported:
    """Write a network in evaluation mode, check the file, and only then put it in its place.

    Parameters
    ----------
    network
        On the CPU.
    path
        The file; its folder is made.
    format
        One of :data:`FORMATS`. ``python`` is a module with a class ``Network`` that needs only torch, into which the network's
        state dict fits; ``onnx`` and ``torchscript`` hold the weights and take any batch; ``state-dict`` holds the weights
        and ``about`` as JSON, for ``torch.load(..., weights_only=True)``.
    size
        Edge of the images in pixels.
    about
        What the file says of its origin: plain data.
    force
        Replace a file that is there.

    Raises
    ------
    ExportError
        If the file is there, cannot be written, the format cannot say what the network does, or the file computes
        something else; nothing is left behind then.
    """
    writers: dict[str, Callable[[nn.Module, Path, int, Mapping[str, Any]], None]] = {
        "python": _write_python,
        "onnx": _write_onnx,
        "torchscript": _write_torchscript,
        "state-dict": _write_state_dict,
    }
    if format not in writers:
        raise ConfigError(f"format is {format!r}{nearest(format, writers)}")
    if path.exists() and not force:
        raise ExportError(f"{path} is there already; name another file with --output, or use --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, evaluation_mode(network):
            written = Path(folder) / f"network{FORMATS[format]}"
            # Class and file names may come from a disk whose names are not UTF-8.
            plain = {
                name: printable(value) if isinstance(value, str) else value for name, value in (about or {}).items()
            }
            writers[format](network, written, size, plain)
            difference = _difference(network, written, format, size)
            if difference is not None and not difference <= TOLERANCE:
                raise ExportError(
                    f"the {format} file differs from the network by {difference:.2g} (more than {TOLERANCE:g}); "
                    "use another --format, and please report it"
                )
            os.replace(written, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}; name another file") from None
    return Exported(path, path.stat().st_size, difference)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict, or the one in a file of ``retrain`` or a Lightning checkpoint (names begin with ``model.`` or ``network.``).

    An auxiliary head that the network does not have is left out.

    Raises
    ------
    ExportError
        If the file is none, or does not fit; names the first parameter that does not.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"cannot read weights from {path}: {error.strerror or error}") from None
    except Exception as error:  # whatever torch's reader raises; its words end in the advice to let the file run code
        raise ExportError(
            f"{path} holds no plain weights ({type(error).__name__}); give what torch.save(network.state_dict(), ...) writes, "
            "or a checkpoint of tensors"
        ) from None
    state = data.get("state_dict", data.get("state", data)) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ExportError(f"{path} holds no state dict; give what torch.save(network.state_dict(), ...) writes")
    wanted = network.state_dict()
    for prefix in ("model.", "network."):
        if not any(name in state for name in wanted) and any(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    state = {name: value for name, value in state.items() if name in wanted or not name.startswith("auxiliary_head.")}
    for name in [*wanted, *state]:
        found = state[name].shape if name in state else None
        expected = wanted[name].shape if name in wanted else None
        if found != expected:
            what = "is missing" if found is None else f"has shape {list(found)}"
            need = "the network has none" if expected is None else f"the network needs {list(expected)}"
            raise ExportError(
                f"{path} does not fit: {name} {what}, {need}; give the same genotype, --cells, --channels and --classes"
            )
    network.load_state_dict(state)


# ---- formats --------------------------------------------------------------------------------------------


def _write_python(network: nn.Module, path: Path, size: int, about: Mapping[str, Any]) -> None:
    title = _title(about)
    source = cell_source(network, title) if isinstance(network, CellNetwork) else traced_source(network, title, size)
    path.write_text(source, encoding="utf-8")


def _title(about: Mapping[str, Any]) -> str:
    lines = [str(about.get("title", "A network found by nni-cssnas.")), ""]
    lines += [f"{name}: {value}" for name, value in about.items() if name != "title"]
    return "\n".join(lines).rstrip().replace("\\", "\\\\").replace('"""', "'''")


def _write_onnx(network: nn.Module, path: Path, size: int, about: Mapping[str, Any]) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"format onnx needs {package}: pip install onnx onnxruntime onnxscript")
    import onnx

    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.randn(2, 3, size, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch wrote no ONNX program; use --format python or torchscript")
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, str(value)
    onnx.save(model, str(path))


class _quiet:  # noqa: N801 - reads as a word in a with statement
    """torch's exporter speaks on stdout and through loggers even if verbose is false."""

    def __enter__(self) -> None:
        import contextlib
        import logging

        self._out = contextlib.redirect_stdout(io.StringIO())
        self._out.__enter__()
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        import logging

        logging.disable(self._level)
        self._out.__exit__(None, None, None)


def _write_torchscript(network: nn.Module, path: Path, size: int, about: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers torch.export now
        traced = torch.jit.trace(network, torch.randn(2, 3, size, size), check_trace=False)
        extra = {"about.json": json.dumps(dict(about), default=str)}
        torch.jit.save(traced, str(path), _extra_files=extra)


def _write_state_dict(network: nn.Module, path: Path, size: int, about: Mapping[str, Any]) -> None:
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "about": json.dumps(dict(about), default=str)}, path)


# ---- check ----------------------------------------------------------------------------------------------


@torch.no_grad()
def _difference(network: nn.Module, path: Path, format: str, size: int) -> float | None:
    """Largest difference on a batch of another size than the one that was traced."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, size, size, generator=generator)
    expected = network(images)
    if format == "state-dict":
        saved = torch.load(path, weights_only=True)["state_dict"]
        return max(
            (float((saved[name] - value).abs().max()) for name, value in network.state_dict().items()), default=0
        )
    if format == "python":
        namespace: dict[str, Any] = {"__name__": "exported"}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
        copy = namespace["Network"]().eval()
        # A fresh deep network gives nearly the same for every image; with norms as after a training, mistakes show.
        state = _stirred(network.state_dict(), generator)
        copy.load_state_dict(state)
        twin = deepcopy(network)
        twin.load_state_dict(state)
        expected, found = twin(images), copy(images)
    elif format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.jit.load(str(path))(images)
    return float((found - expected).abs().max())


def _stirred(state: Mapping[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A state dict whose batch norms, told by their running statistics, have random ones."""
    result = dict(state)
    for name in state:
        prefix, _, last = name.rpartition(".")
        if last == "running_var":
            for part, low, high in (
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 2),
                ("weight", 0.5, 1.5),
                ("bias", -0.2, 0.2),
            ):
                key = f"{prefix}.{part}"
                if key in state:
                    drawn = torch.rand(state[key].shape, generator=generator, dtype=state[key].dtype)
                    result[key] = low + (high - low) * drawn
    return result
