"""A machine for NNI's remote platform, in one process: an SSH server with its own address, home, key and Python folder.

``python ssh_worker.py HOST HOME`` serves until it is ended. It writes the port into ``HOME/port``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


async def serve(host: str, home: Path) -> None:
    import asyncssh

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        shell = await asyncio.create_subprocess_exec(
            *(["/bin/sh", "-c", process.command] if process.command else ["/bin/sh"]),
            cwd=home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": str(home)},
        )
        # Not asyncssh's redirect, which fails, and ends the connection, where a command has ended before it begins.
        feeding = asyncio.create_task(copy(process.stdin, shell.stdin, close=True))
        await asyncio.gather(copy(shell.stdout, process.stdout), copy(shell.stderr, process.stderr))
        process.exit(await shell.wait())
        feeding.cancel()

    async def copy(reader: Any, writer: Any, *, close: bool = False) -> None:
        with suppress(OSError, asyncssh.Error):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
            if close:
                writer.close()

    server = await asyncssh.create_server(
        asyncssh.SSHServer,
        host,
        0,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=str(home / "authorized_keys"),
        process_factory=run,
        sftp_factory=True,
        encoding=None,
    )
    (home / "port.new").write_text(str(server.get_port()))
    (home / "port.new").rename(home / "port")
    await server.wait_closed()


@dataclass(frozen=True)
class SshWorker:
    """A served machine."""

    host: str
    port: int
    home: Path
    server: subprocess.Popen[bytes]

    @classmethod
    def start(cls, host: str, home: Path, key: Path, environment: Mapping[str, str]) -> SshWorker:
        """Serve ``host`` with a new ``home`` to whoever has the private ``key``."""
        import asyncssh

        python = home / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        public = asyncssh.read_private_key(key).export_public_key()
        (home / "authorized_keys").write_bytes(public)
        settings = {**environment, "HOME": str(home), "PIP_NO_INDEX": "1"}
        server = subprocess.Popen([sys.executable, __file__, host, str(home)], env=settings, cwd=home)
        deadline = time.monotonic() + 60
        while not (home / "port").is_file():
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"no SSH server on {host}")
            time.sleep(0.05)
        return cls(host, int((home / "port").read_text()), home, server)

    def machine(self, key: Path) -> dict[str, object]:
        """The entry of ``machineList``."""
        return {
            "host": self.host,
            "port": self.port,
            "user": "me",
            "sshKeyFile": str(key),
            "pythonPath": str(self.home / "venv" / "bin"),
        }

    def lose(self) -> None:
        """End all that runs there, as a machine does that loses its power."""
        self.server.kill()
        self.server.wait(10)
        for process in self._processes():
            try:
                process.kill()
                process.wait(10)
            except psutil.Error:
                continue

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
