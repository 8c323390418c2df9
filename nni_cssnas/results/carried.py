"""How the record of a trial on another machine comes to the manager's machine.

The record of a local trial lies in the experiment's folder. That of another machine's trial lies there, so the trial also
sends it: a finished one as one more entry of its final metric, of which NNI and its tuners read ``default`` only; a
failed or stopped one, which has no final metric, as a line of its output, which NNI fetches on request.
:mod:`nni_cssnas.tuners.collector` takes it from there.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.records import TrialRecord

__all__ = [
    "COLLECTED",
    "KEY",
    "LINE",
    "found_in_metric",
    "found_in_output",
    "is_elsewhere",
    "pack",
    "tell_end",
    "with_record",
    "without_record",
]

KEY = "record"
"""The entry of the final metric."""

LINE = "nni-cssnas-record: "
"""How the line of the output begins."""

COLLECTED = "trials"
"""Folder of an experiment for what came from other machines, with a folder a trial; NNI keeps the output that it fetches there."""

LARGEST = 2**26
"""Bytes of a record: what claims more is no record of ours."""


def is_elsewhere(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a trial of another machine than its manager's."""
    return environ.get("NNI_PLATFORM", "local") != "local"


def pack(record: TrialRecord) -> str:
    """A record as letters and digits: NNI packs a metric into JSON three times over, which is long with quotes."""
    return base64.b64encode(zlib.compress(json.dumps(asdict(record)).encode())).decode()


def with_record(metric: Mapping[str, Any], record: TrialRecord) -> dict[str, Any]:
    """The final metric that tells the record too, where that is needed."""
    return {**metric, KEY: pack(record)} if is_elsewhere() else dict(metric)


def without_record(metric: Any) -> Any:
    """A final metric as the trial would report it on its manager's machine."""
    return {name: value for name, value in metric.items() if name != KEY} if isinstance(metric, Mapping) else metric


def tell_end(record: TrialRecord) -> None:
    """Print the record of a trial that has no final metric, where that is needed."""
    if is_elsewhere():
        print(f"\n{LINE}{pack(record)}", flush=True)


def found_in_metric(metric: Any, trial: str) -> TrialRecord | None:
    """The record in a final metric; None if there is none. Raises ExperimentError if it is damaged, or another trial's."""
    text = metric.get(KEY) if isinstance(metric, Mapping) else None
    return _unpack(text, trial) if isinstance(text, str) else None


def found_in_output(output: str, trial: str) -> TrialRecord | None:
    """The last record in a trial's output, as :func:`found_in_metric`."""
    lines = [line for line in output.splitlines() if line.startswith(LINE)]
    return _unpack(lines[-1].removeprefix(LINE), trial) if lines else None


def _unpack(text: str, trial: str) -> TrialRecord:
    origin = f"that trial {trial} sent"
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), LARGEST).decode()
    except (ValueError, zlib.error) as error:
        raise ExperimentError(f"cannot read the record {origin}: {error}") from None
    record = TrialRecord.parse(content, origin)
    if record.trial != trial:
        raise ExperimentError(f"cannot read the record {origin}: it is that of trial {record.trial}")
    return record
