"""NNI's remote platform, looked at before a manager is started: what each machine needs, asked of it by ssh.

NNI starts the manager first and ends it when one machine cannot be used, with the reason in a log. Here every machine is
asked, by the ``ssh`` command and with the key that ``machineList`` names, and each has one line.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_cssnas.bridge import worker_probe
from nni_cssnas.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from nni_cssnas.config import ImagesConfig
    from nni_cssnas.images.pool import Images

__all__ = [
    "Asked",
    "Machine",
    "Remote",
    "ask_machines",
    "carry_images",
    "check_code_folder",
    "check_source",
    "refuse_closed",
]

MOST_FILES, MOST_BYTES = 2000, 300 * 2**20
"""Of a code folder; NNI refuses more."""

PATIENCE = 60.0
"""Seconds for the answer of one machine, whose Python may lie on a slow disk."""

REMEDIES = {"nni": "nni=={}", "torch": "torch=={}", "nni-cssnas": "nni-cssnas=={}"}


@dataclass(frozen=True)
class Machine:
    """An entry of ``machineList``: where to connect, with which key (None: with a password, or a key that needs one), and
    the folder of its Python (None: that of its PATH)."""

    host: str
    port: int
    user: str
    key: Path | None
    python: str | None

    def __str__(self) -> str:
        return self.host if self.port == 22 else f"{self.host}:{self.port}"

    def command(self, words: str) -> list[str]:
        """What runs ``words``, for a POSIX shell, there."""
        options = [
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "StrictHostKeyChecking=accept-new",
        ]
        key = [] if self.key is None else ["-i", str(self.key), "-o", "IdentitiesOnly=yes"]
        target = ["-p", str(self.port), "-l", self.user, "--", self.host]
        return ["ssh", *options, *key, *target, f"sh -c {shlex.quote(words)}"]


@dataclass(frozen=True)
class Remote:
    """``trainingService: {platform: remote}``: the machines, and the address of this one that they shall reach."""

    machines: tuple[Machine, ...]
    manager: str

    @classmethod
    def of(cls, service: Any) -> Remote:
        """From NNI's own configuration, in its canonical form."""
        machines = [
            Machine(
                host=str(machine.host),
                port=int(machine.port),
                user=str(machine.user),
                key=None if machine.password or machine.ssh_passphrase else Path(str(machine.ssh_key_file)),
                python=machine.python_path,
            )
            for machine in service.machine_list
        ]
        return cls(tuple(machines), str(service.nni_manager_ip))


def refuse_closed(platform: object, public: bool) -> None:
    """Refuse to start a manager that other machines cannot reach for trials that run there. Raises ConfigError."""
    if platform == "remote" and not public:
        raise ConfigError(
            "trainingService is platform: remote, and its machines must reach the manager on this one; add --public: the "
            "manager then listens on every interface and asks other machines for a secret, and whoever has it can run "
            "programs as you (docs/security.md)"
        )


def check_code_folder(folder: Path) -> None:
    """Refuse a code folder that NNI cannot carry as it is.

    Raises
    ------
    ConfigError
        If there is a symbolic link in it, which would lead nowhere on another machine, or too much.
    """
    size = 0
    for number, path in enumerate(_travelling(folder), start=1):
        name = path.relative_to(folder)
        if path.is_symlink():
            raise ConfigError(
                f"trialCodeDirectory: {name} is a symbolic link to {os.readlink(path)}, and other machines get the link alone; "
                "copy what it leads to, name images.source by its absolute path, or name the link in .nniignore"
            )
        size += path.stat().st_size
        if number > MOST_FILES or size > MOST_BYTES:
            raise ConfigError(
                f"trialCodeDirectory: {folder} holds more than {MOST_FILES} files or {MOST_BYTES // 2**20} MB, which NNI "
                f"does not send to other machines ({name} and what follows); move images out of it and name them by their "
                "absolute path, or name what trials do not need in .nniignore"
            )


def check_source(given: str, code: Path) -> None:
    """Refuse an ``images.source`` that means another place on another machine.

    Parameters
    ----------
    given
        As ``proxy.yml`` has it; its relative paths are taken from ``code``.
    code
        The folder that travels.

    Raises
    ------
    ConfigError
        If it is a path that is neither absolute nor below ``code``, or goes through a link.
    """
    if given in ("tiles", "cifar10"):
        return
    real = (code / Path(given).expanduser()).resolve()
    if not Path(given).is_absolute() and not given.startswith("~") and real.is_relative_to(code.resolve()):
        return
    if given != str(real):
        raise ConfigError(
            f"images.source is {given!r}, which other machines take for another place; write its absolute path without "
            f"links, as source: {real}"
        )


@dataclass(frozen=True)
class Asked:
    """A machine that can be used, and what it has answered (:func:`nni_cssnas.bridge.worker_probe.facts`)."""

    machine: Machine
    answer: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.machine}: Python {self.answer['python']}, torch {self.answer['torch']}"


def ask_machines(
    remote: Remote,
    *,
    port: int,
    source: str | None = None,
    config: ImagesConfig | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Asked]:
    """Ask every machine for what trials need there, all at the same time.

    A machine that wants a password is left out: NNI knows it, and the ``ssh`` command takes none.

    Parameters
    ----------
    remote
        The machines.
    port
        On which the manager will listen; it is free now.
    source
        Where the images may lie there: an absolute path, or ``cifar10``.
    config
        The section ``images``, by which it is asked what was carried there before.
    tell
        Told one line for each machine that is left out.

    Raises
    ------
    ConfigError
        If a machine cannot be used: one line for each, with the remedy.
    """
    name = None
    if config is not None and source is not None:
        from nni_cssnas.images.carried import carried_name

        name = carried_name(config)
    with _listening(port) as is_open:
        question = {"source": source, "carried": name, "manager": [remote.manager, port] if is_open else None}
        machines = [machine for machine in remote.machines if machine.key is not None]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda machine: _ask(machine, question), machines))
    for machine in remote.machines:
        if machine.key is None:
            tell(
                f"{machine}: not looked at, for it wants a password; with a key of its own (ssh-keygen, ssh-copy-id) it is"
            )
    own = worker_probe.facts(source)
    if own["source"] is None:
        # The images may lie on the other machines only; all must have the same.
        own["source"] = next(
            (answer["source"] for answer in answers if isinstance(answer, dict) and answer["source"]), None
        )
    problems, asked = [], []
    for machine, answer in zip(machines, answers, strict=True):
        problem = answer if isinstance(answer, str) else _problem(answer, own, remote.manager, port)
        if problem is None and not isinstance(answer, str):
            asked.append(Asked(machine, answer))
        else:
            problems.append(f"{machine}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    return asked


def carry_images(
    asked: Sequence[Asked],
    *,
    source: str | None,
    config: ImagesConfig | None,
    images: Images | None,
    tell: Callable[[str], None],
) -> None:
    """Carry the images to the machines that have neither their source nor them.

    Parameters
    ----------
    asked
        What :func:`ask_machines` gave for the same ``source`` and ``config``.
    source
        See there; None where images travel with the code or with the package.
    config, images
        The section, and the images themselves; None where they are not on this machine.
    tell
        Told one line for each machine.

    Raises
    ------
    ConfigError
        If they cannot be carried to a machine: one line for each, with the remedy.
    """
    if source is None:
        for item in asked:
            tell(f"{item}; it can be used")
        return
    problems = []
    for item in asked:
        line, problem = f"it has {source}", None
        if not item.answer["source"]:
            line, problem = _carried(item, source, config, images)
        if problem is None:
            tell(f"{item}; {line}")
        else:
            problems.append(f"{item.machine}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))


def _carried(item: Asked, source: str, config: ImagesConfig | None, images: Images | None) -> tuple[str, str | None]:
    """Carry the images to one machine unless they are there: what is to be told, or the problem."""
    import torch

    from nni_cssnas.images.carried import carried_length, carried_name, checksum

    if config is None or not isinstance(images, torch.Tensor):
        missing = "it is not here either" if images is None else "it is too large to be carried (images.resident_gb)"
        return "", f"images.source {source} is not there, and {missing}; put it there, at that path"
    if item.answer["carried"] == [carried_length(images), f"{checksum(images):08x}"]:
        return f"its {len(images)} images were carried there before", None
    folder = item.answer["cache"]
    reason = _carry(item.machine, f"{folder}/{carried_name(config)}", images)
    if reason is not None:
        return (
            "",
            f"the images cannot be carried to {folder}: {reason}; make space or a folder there that can be written",
        )
    return f"{len(images)} images were carried to {folder}", None


def _problem(answer: Mapping[str, Any], own: Mapping[str, Any], manager: str, port: int) -> str | None:
    """What is missing on a machine, with the remedy."""
    if answer["python"] != own["python"]:
        return (
            f"its Python is {answer['python']}, and that of this machine {own['python']}; name the folder of another as "
            "pythonPath"
        )
    for name, remedy in REMEDIES.items():
        if answer[name] != own[name]:
            there = f"{name} is {answer[name]} there" if answer[name] else f"{name} is not installed there"
            return f"{there}, and {own[name]} on this machine; pip install '{remedy.format(own[name])}' there"
    if answer["code"] != own["code"]:
        return "the source of nni_cssnas is another there; install the same there"
    if answer["source"] and answer["source"] != own["source"]:
        (there, there_bytes), (here, here_bytes) = answer["source"], own["source"]
        return (
            f"its images.source holds {there} files of {there_bytes} bytes together, and that of another machine {here} of "
            f"{here_bytes}; scores on different images do not compare, so make them equal, or remove them there to have them "
            "carried"
        )
    if answer["route"] is not None:
        return (
            f"it does not reach this machine at {manager}:{port} ({answer['route']}); open that port to it, or set "
            "nniManagerIp to an address that it reaches"
        )
    return None


def _ask(machine: Machine, question: Mapping[str, object]) -> dict[str, Any] | str:
    """The answer of :mod:`~nni_cssnas.bridge.worker_probe`, or why there is none."""
    folder = machine.python
    found = [f"{folder}/python", f"{folder}/python3"] if folder else ["python", "python3"]  # as NNI looks
    python, other = map(shlex.quote, found)
    argument = shlex.quote(json.dumps(question))
    words = (
        f"if command -v {python} >/dev/null; then exec {python} - {argument}; "
        f"elif command -v {other} >/dev/null; then exec {other} - {argument}; else exit 44; fi"
    )
    probe = Path(worker_probe.__file__).read_bytes()
    try:
        done = subprocess.run(machine.command(words), input=probe, capture_output=True, check=False, timeout=PATIENCE)
    except FileNotFoundError:
        return "this machine has no ssh command; install OpenSSH's client"
    except subprocess.TimeoutExpired:
        return f"it does not answer within {PATIENCE:g} s; look at it with: {_by_hand(machine)}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 44:
        where = f"pythonPath {folder} has no python; it must be the folder of one, as /home/me/venv/bin"
        return where if folder else "there is no python in its PATH; name the folder of one as pythonPath"
    if done.returncode == 255:
        return f"ssh cannot connect ({said[-1] if said else 'without a reason'}); mend it until this works: {_by_hand(machine)}"
    lines = done.stdout.decode(errors="replace").splitlines()
    with suppress(ValueError, IndexError):
        answer = json.loads(lines[-1])  # a login may print something before
        if isinstance(answer, dict):
            return answer
    return f"its Python gives no answer ({said[-1] if said else f'exit code {done.returncode}'}); see pythonPath"


def _by_hand(machine: Machine) -> str:
    return shlex.join(["ssh", "-p", str(machine.port), "-i", str(machine.key), f"{machine.user}@{machine.host}"])


def _carry(machine: Machine, path: str, images: Tensor) -> str | None:
    """Write the images into a file there, as a whole or not at all; gives why it failed."""
    from nni_cssnas.images.carried import carried_bytes, carried_length

    folder, temporary = os.path.dirname(path), f"{path}.{os.getpid()}.tmp"
    words = (
        f"umask 077; mkdir -p {shlex.quote(folder)} && cat > {shlex.quote(temporary)} && "
        f"[ $(wc -c < {shlex.quote(temporary)}) -eq {carried_length(images)} ] && "
        f"mv -f {shlex.quote(temporary)} {shlex.quote(path)} || {{ rm -f {shlex.quote(temporary)}; exit 1; }}"
    )
    with subprocess.Popen(
        machine.command(words), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # it tells why
            for piece in carried_bytes(images):
                process.stdin.write(piece)
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
    return None if process.returncode == 0 else said[-1] if said else "it was interrupted"


@contextmanager
def _listening(port: int) -> Iterator[bool]:
    """Listen where the manager will, so that machines can try the way; gives whether that works."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
            server.listen()
        except OSError:
            yield False  # the start will tell who listens there
            return
        yield True


def _travelling(folder: Path) -> Iterator[Path]:
    """The files and links that NNI sends: all but those of ``.nniignore``, as far as its lines are plain patterns."""
    ignored: Iterable[str] = ()
    with suppress(OSError, UnicodeDecodeError):
        ignored = (folder / ".nniignore").read_text(encoding="utf-8").split("\n")
    patterns = [line.strip().strip("/") for line in ignored if line.strip() and not line.startswith("#")]

    def is_ignored(path: Path) -> bool:
        name = path.relative_to(folder).as_posix()
        return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path.name, pattern) for pattern in patterns)

    def walk(parent: Path) -> Iterator[Path]:
        for path in sorted(parent.iterdir()):
            if is_ignored(path):
                continue
            if path.is_dir() and not path.is_symlink():
                yield from walk(path)
            else:
                yield path

    yield from walk(folder)
