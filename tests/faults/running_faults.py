"""Faults of running experiments and screenings: kills, stops, slow answers, full disks.

One experiment of stub trials goes through most of them, one after the other. After each the oracle of :mod:`stub`
compares journal, records and NNI's listing with the known scores, and the next scores must come within a minute.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml
from counting import PATIENCE, Campaign, FindingError, Heard, NotInjectedError, check
from stub import Stub, Verdict, key_of, wait

from nni_cssnas.bridge import launch
from nni_cssnas.bridge.pairing import OwnParametersChannel
from nni_cssnas.errors import ExperimentError
from nni_cssnas.results.screening_log import LOG_NAME

TRANSIT = 5.0
"""Seconds for which the report of a trial that has ended may still be on its way."""


def inject_all(campaign: Campaign, scale: float) -> None:
    """Every group, ``scale`` times its size in the long campaign; a short one leaves out what takes longest."""
    inject_screenings(campaign, scale)
    inject_experiments(campaign, scale)


def inject_screenings(campaign: Campaign, scale: float) -> None:
    """Those on processes of ``screen``, which a short campaign leaves out."""
    if scale >= SHORT:
        home = campaign.folder / "screenings"
        home.mkdir(parents=True)
        with mock.patch.dict(os.environ, HOME=str(home), NNI_CSSNAS_CACHE=str(home / "cache")):
            harm_screenings(campaign, scale, home / "screening")


def inject_experiments(campaign: Campaign, scale: float) -> None:
    """Those on experiments of ``nnictl``."""
    scale = scale if scale >= SHORT else FEW
    home = campaign.folder / "home"
    (home / "small").mkdir(parents=True)
    with mock.patch.dict(os.environ, HOME=str(home), NNI_CSSNAS_CACHE=str(home / "cache")):
        Harmed(campaign, home, scale).run()
    with mock.patch.dict(os.environ, HOME=str(home / "small"), NNI_CSSNAS_CACHE=str(home / "cache")):
        fill_disks(campaign, home / "small", some(3, scale))


SHORT = 0.5
"""Below this part of the long campaign it is a short one."""

FEW = 0.06
"""The part of it that a short one is."""


def some(number: int, scale: float) -> int:
    return max(1, round(number * scale))


# ---- one long experiment --------------------------------------------------------------------------


class Harmed:
    """An experiment to which one fault after the other happens."""

    def __init__(self, campaign: Campaign, home: Path, scale: float) -> None:
        self.campaign = campaign
        self.home = home
        self.disturbed: set[str] = set()
        plan = [
            ("trial killed", some(36, scale), self.kill_trial),
            ("slow or broken answers", some(30, scale), self.slow_answers),
            ("tuner stopped for a while", some(5, scale), self.stop_tuner),
            ("manager killed, resumed at once", some(5, scale), self.kill_manager),
        ]
        if scale >= SHORT:
            plan += [
                ("trial stopped for a while", some(8, scale), self.stop_trial),
                ("manager stopped for a while", some(5, scale), self.stop_manager),
                ("tuner killed, resumed", some(3, scale), self.kill_tuner),
            ]
        self.plan = [(group, inject) for group, number, inject in plan for _ in range(number)]
        # Mixed, so that one kind of fault meets what another has left.
        campaign.random("plan", 0).shuffle(self.plan)

    def run(self) -> None:
        """All faults, then the end: the experiment is done, and all is right."""
        self.stub = Stub.start(self.home / "code", self.home / "nni-experiments", trials=10_000, startup=10)
        try:
            if not self.stub.await_more(2, 2 * PATIENCE):
                raise FindingError("hung", "the experiment did not begin")
            for number, (group, inject) in enumerate(self.plan):
                rng = self.campaign.random(group, number)
                self.campaign.one(group, partial(self._one, inject, rng), name=f"number {number}", running=True)
                if not self.stub.processes("manager"):
                    self.stub.resume()  # the next fault needs an experiment
            self.campaign.one("the end after all of these", self._end, running=True)
        finally:
            self.stub.end()

    def _one(self, inject: Callable[[random.Random], str], rng: random.Random) -> str:
        said = inject(rng)
        if inject == self.slow_answers:
            return said  # only who asks is harmed
        if not self.stub.await_more(1, PATIENCE):
            raise FindingError("hung", f"no score within {PATIENCE} s after {said}; status {self.stub.status()}")
        self._judge()
        return said

    def _judge(self) -> None:
        verdict = Verdict()

        def settled() -> bool:
            nonlocal verdict
            verdict = self.stub.verdict(self.disturbed)
            return verdict.good

        # What has just ended is still on its way to the tuner.
        wait(settled, 15.0, 0.5)
        for outcome in ("wrong", "lost", "repeated"):
            found = getattr(verdict, outcome)
            if found:
                raise FindingError(outcome, "; ".join(found[:3]))
        log = self.stub.folder / "log" / "dispatcher.log"
        if log.exists() and "nni_cssnas/" in log.read_text(errors="replace"):
            raise FindingError("traceback", f"in {log}")

    def _end(self) -> str:
        """Let a few more trials be the last ones, as ``nnictl update trialnum`` does."""
        total = len(self.stub.experiment.get("trial-jobs")) + 4
        profile = self.stub.experiment.get("experiment")
        profile["params"]["maxTrialNumber"] = total
        url = f"{self.stub.experiment.portal}/api/v1/nni/experiment?update_type=MAX_TRIAL_NUM"
        launch._session().put(url, json=profile, timeout=20).raise_for_status()
        if not wait(lambda: self.stub.status() == "DONE", 2 * PATIENCE, 1.0):
            raise FindingError("hung", f"not done: {self.stub.experiment.progress()}")
        self._judge()
        wrong = self.stub.listing()
        check(not wrong, "wrong", "; ".join(wrong[:3]))
        facts = self.stub.verdict(self.disturbed).facts
        again = facts["evaluated once more after a kill"]
        self.campaign.say(
            f"{facts['finished']} architectures evaluated in the end, {len(self.disturbed)} trials were disturbed, "
            f"{again} of these evaluated once more"
        )
        return "done"

    # ---- faults ----

    def _trial(self, *, working: bool = False) -> psutil.Process:
        """A trial's process; ``working``: one that has its parameters."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [
                process for process in self.stub.processes("trial") if not working or self._folder_of(process).exists()
            ]
            return bool(found)

        if not wait(look, 30.0, 0.05):
            raise FindingError("hung", "no trial within 30 s")
        return found[0]

    def _folder_of(self, process: psutil.Process) -> Path:
        try:
            return Path(process.environ()["NNI_OUTPUT_DIR"], "record.json")
        except (psutil.Error, KeyError):
            return Path("/nowhere")

    def kill_trial(self, rng: random.Random) -> str:
        """SIGKILL at any moment: before it asks, while it works, or while it reports."""
        process = self._trial(working=rng.random() < 0.5)
        time.sleep(rng.random() * 1.5)
        try:
            self.disturbed.add(process.environ()["NNI_TRIAL_JOB_ID"])
            process.kill()
        except (psutil.Error, KeyError):
            return self.kill_trial(rng)  # it had ended
        return "kill -9 of a trial"

    def _pause(self, kind: str, process: psutil.Process, seconds: float) -> str:
        try:
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            pass
        return f"{kind} stopped for {seconds:.1f} s"

    def stop_trial(self, rng: random.Random) -> str:
        return self._pause("trial", self._trial(), 0.5 + 2 * rng.random())

    def stop_tuner(self, rng: random.Random) -> str:
        return self._pause("tuner", _largest(self.stub.processes("tuner")), 1 + 3 * rng.random())

    def stop_manager(self, rng: random.Random) -> str:
        return self._pause("manager", self.stub.processes("manager")[0], 1 + 3 * rng.random())

    def _disturb_all(self) -> None:
        """What runs, or has just ended, may be unknown to NNI from now on."""
        now = time.time()
        for process in self.stub.processes("trial"):
            try:
                self.disturbed.add(process.environ()["NNI_TRIAL_JOB_ID"])
            except (psutil.Error, KeyError):
                continue
        for record in self.stub.records():
            if record.started + (record.duration or TRANSIT) > now - TRANSIT:
                self.disturbed.add(record.trial)

    def kill_manager(self, rng: random.Random) -> str:
        """SIGKILL; whoever watches is told how to go on, which is done at once."""
        time.sleep(2 * rng.random())
        self._disturb_all()
        process = self.stub.signal("manager", signal.SIGKILL)
        check(process is not None, "hung", "no manager")
        assert process is not None
        process.wait(10)
        heard = Heard()
        try:
            for _ in self.stub.experiment.watch(0.2, silence=30):
                pass
            raise FindingError("unclear", "a manager that is gone was not noticed")
        except ExperimentError as error:
            heard.lines.append(str(error))
        heard.names("does not answer", f"nni-cssnas resume {self.stub.experiment.id}")
        check(len(heard.text.splitlines()) == 1, "unclear", f"not one line: {heard.text}")
        self.stub.resume()
        return "kill -9 of the manager"

    def kill_tuner(self, rng: random.Random) -> str:
        """SIGKILL; NNI says so after a while, if one waits; stopped and resumed, it goes on."""
        time.sleep(2 * rng.random())
        self._disturb_all()
        _largest(self.stub.processes("tuner")).kill()
        if rng.random() < 0.5:
            errors: tuple[str, ...] = ()

            def told() -> bool:
                nonlocal errors
                progress = self.stub.experiment.progress()
                errors = progress.errors
                return progress.status == "ERROR"

            check(wait(told, PATIENCE, 1.0), "hung", "NNI did not notice")
            check("tuner" in " ".join(errors), "unclear", f"{errors}")
        else:
            time.sleep(1)
        self._disturb_all()
        self.stub.experiment.stop()
        self.stub.resume()
        return "kill -9 of the tuner"

    def slow_answers(self, rng: random.Random) -> str:
        """The manager's answers come late, in drops, broken off or as errors: right, or one line."""
        mode = rng.choice(["late", "drops", "reset first", "error first", "broken off", "garbage", "silent"])
        with proxy(self.stub.experiment.port, mode) as port:
            seen = launch.RunningExperiment(self.stub.experiment.id, port)
            if rng.random() < 0.5:
                return f"{mode}: {self._ask_parameters(seen, mode)}"
            before = self.stub.experiment.progress()
            try:
                with _short_timeouts():
                    progress = seen.progress()
            except ExperimentError as error:
                text = str(error)
                check(mode in ("broken off", "garbage", "silent"), "lost", f"{mode}: {text}")
                check("does not answer" in text and len(text.splitlines()) == 1, "unclear", f"{mode}: {text}")
                return mode
            after = self.stub.experiment.progress()
            check(before.succeeded <= progress.succeeded <= after.succeeded, "wrong", f"{mode}: {progress}")
            check(
                before.best is None or progress.best is None or progress.best >= before.best, "wrong", f"{mode}: best"
            )
        return mode

    def _ask_parameters(self, seen: launch.RunningExperiment, mode: str) -> str:
        """As a trial asks for its own."""
        record = next(record for record in self.stub.records() if record.finished)
        url = f"{seen.portal}/env/environment/{record.trial}"
        channel = OwnParametersChannel(url, record.trial, patience=8.0)
        try:
            with _short_timeouts():
                got = channel.receive_parameter()
        except ExperimentError as error:
            check(mode in ("broken off", "garbage", "silent"), "lost", f"{mode}: {error}")
            check(record.trial in str(error) and "nnimanager.log" in str(error), "unclear", str(error))
            return "refused"
        check(key_of(got["parameters"]) == key_of(record.parameters), "wrong", f"{mode}: another's parameters")
        return "got"


def _largest(processes: list[psutil.Process]) -> psutil.Process:
    """The tuner itself, where NNI started it through a shell."""
    if not processes:
        raise FindingError("hung", "there is no tuner")
    return max(processes, key=lambda process: process.memory_info().rss)


@contextmanager
def _short_timeouts() -> Iterator[None]:
    """Wait seconds for an answer in place of up to a minute; what happens then is the same."""
    import requests

    real = requests.Session.request

    def request(self: Any, *arguments: Any, **values: Any) -> Any:
        return real(self, *arguments, **{**values, "timeout": 2})

    with mock.patch.object(requests.Session, "request", request):
        yield


@contextmanager
def proxy(port: int, mode: str) -> Iterator[int]:
    """A way to ``port`` that is slow or broken; gives its own port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    ended = threading.Event()
    count = 0

    def serve() -> None:
        nonlocal count
        while not ended.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            count += 1
            threading.Thread(target=_forward, args=(client, port, mode, count, ended), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        thread.join(5)
        listener.close()


def _forward(client: socket.socket, port: int, mode: str, number: int, ended: threading.Event) -> None:
    """One request and its answer."""
    try:
        with client:
            request = client.recv(65536)
            if not request:
                return
            if mode == "silent":
                ended.wait(30)
                return
            if mode == "reset first" and number == 1:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                return
            if mode == "error first" and number == 1:
                client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if mode == "garbage":
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n<html>..\n")
                return
            answer = _ask(port, request)
            if mode == "broken off":
                client.sendall(answer[: len(answer) * 2 // 3])
            elif mode == "drops":
                for start in range(0, len(answer), max(1, len(answer) // 10)):
                    client.sendall(answer[start : start + max(1, len(answer) // 10)])
                    time.sleep(0.05)
            else:
                time.sleep(0.7 if mode == "late" else 0.0)
                client.sendall(answer)
    except OSError:
        return


def _ask(port: int, request: bytes) -> bytes:
    """The manager's whole answer; the connection is closed after it."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"host:"))]
    lines += [b"Host: 127.0.0.1:%d" % port, b"Connection: close"]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as manager:
        manager.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        parts = []
        while part := manager.recv(65536):
            parts.append(part)
    return b"".join(parts)


# ---- full disks -----------------------------------------------------------------------------------


def fill_disks(campaign: Campaign, home: Path, number: int) -> None:
    """The disk of an experiment is full ``number`` times; space is made, it is resumed, and in the end it is done."""
    group = "disk of the experiment full, resumed"
    disk = home / "nni-experiments"
    try:
        with ExitStack() as stack:
            stack.enter_context(_small_disk(disk))
            stub = Stub.start(home / "full", disk, trials=6 + 4 * number, startup=5)
            stack.callback(stub.end)
            disturbed: set[str] = set()
            check(stub.await_more(2, 2 * PATIENCE), "hung", "the experiment did not begin")
            for index in range(number):
                campaign.one(group, lambda: _fill_disk(stub, disk, disturbed), name=f"number {index}", running=True)
            campaign.one("the end after full disks", lambda: _end_of_full(stub, disturbed), running=True)
    except NotInjectedError as error:
        campaign.running.add(group)
        campaign.count(group, "not injected", str(error), number)


@contextmanager
def _small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotInjectedError(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def _fill_disk(stub: Stub, disk: Path, disturbed: set[str]) -> str:
    whole = stub.journal.read_bytes()
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    if file.write(b"x" * size) < size:
                        break
            except OSError:
                continue
    noticed, said = _told_of_the_end(stub)
    disturbed |= {trial["trialJobId"] for trial in _listing(stub)}
    stub.end()
    filler.unlink()
    is_whole = stub.journal.read_bytes().startswith(whole)
    stub.resume()
    check(noticed, "hung", f"the full disk was not noticed: {said}")
    check(is_whole, "lost", "the journal is damaged")
    check("full" in said.lower() or "space" in said.lower(), "unclear", f"said: {said!r}")
    check(len(said.splitlines()) == 1, "unclear", f"not one line: {said!r}")
    check(stub.await_more(1, PATIENCE), "hung", f"no score after it was resumed: {stub.status()}")
    verdict = stub.verdict(disturbed)
    check(verdict.good, "wrong", str(verdict))
    return "full"


def _told_of_the_end(stub: Stub) -> tuple[bool, str]:
    """Whether who watches hears within a minute that the experiment does not go on, and of what."""
    begun = time.monotonic()
    said = ""
    try:
        for progress in stub.experiment.watch(0.5, silence=PATIENCE):
            said = "; ".join(progress.errors)
            if progress.ended:
                return True, said or f"{progress}"
            if time.monotonic() > begun + PATIENCE:
                return False, f"{progress}"
    except ExperimentError as error:
        said = str(error)
    return True, said


def _listing(stub: Stub) -> list[dict[str, Any]]:
    """Trials that had not ended when the manager was last asked."""
    try:
        return [trial for trial in stub.experiment.get("trial-jobs") if trial["status"] != "SUCCEEDED"]
    except ExperimentError:
        return []


def _end_of_full(stub: Stub, disturbed: set[str]) -> str:
    check(wait(lambda: stub.status() == "DONE", 4 * PATIENCE, 1.0), "hung", f"not done: {stub.experiment.progress()}")
    verdict = stub.verdict(disturbed)
    check(verdict.good, "wrong", str(verdict))
    check(not stub.listing(), "wrong", "; ".join(stub.listing()))
    return "done"


# ---- screenings -----------------------------------------------------------------------------------

SCREENING: dict[str, Any] = {
    "space": {"arguments": {"num_nodes": 4, "num_cells": 3, "channels": 4}},
    "images": {"source": "tiles", "num_images": 64},
    "untrained": {"batch_size": 8},
    "threads": 1,
}


def harm_screenings(campaign: Campaign, scale: float, folder: Path) -> None:
    """Workers and main processes of ``screen`` are killed; the same command goes on, and nothing is measured twice."""
    folder.mkdir()
    (folder / "proxy.yml").write_text(yaml.safe_dump(SCREENING))
    workers, mains = some(8, scale), some(4, scale)
    total = 12 * (workers + mains)
    log = folder / "found" / LOG_NAME
    process = _screen(folder, total)
    try:
        plan = ["worker"] * workers + ["main"] * mains
        campaign.random("screening", 0).shuffle(plan)
        for number, kind in enumerate(plan):

            def harm(kind: str = kind) -> str:
                nonlocal process
                before = _rows(log)
                check(wait(lambda: _rows(log) > before or process.poll() is not None, 2 * PATIENCE), "hung", "no row")
                if process.poll() is not None:
                    raise NotInjectedError("it had ended before")
                if kind == "main":
                    process.kill()
                    process.communicate(timeout=30)
                    process = _screen(folder, total)
                    return kind
                check(wait(lambda: bool(_workers(process)), PATIENCE), "hung", "no worker")
                _workers(process)[0].kill()
                return kind

            campaign.one(f"screen: {kind} killed", harm, running=True, name=f"number {number}")
        campaign.one("the end of the screening", lambda: _end_of_screening(process, log, total), running=True)
    finally:
        process.kill()
        process.communicate()


def _screen(folder: Path, total: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nni_cssnas.cli", "screen", "proxy.yml", "-o", "found", "--num", str(total)]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _rows(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def _end_of_screening(process: subprocess.Popen[str], log: Path, total: int) -> str:
    from nni_cssnas.config import ProxyConfig
    from nni_cssnas.judge.screening import Screener

    try:
        _, errors = process.communicate(timeout=4 * PATIENCE)
    except subprocess.TimeoutExpired:
        raise FindingError("hung", "the screening did not end") from None
    check("Traceback" not in errors, "traceback", errors[-500:])
    check(process.returncode == 0, "lost", f"rc {process.returncode}: {errors[-500:]}")
    rows = [row for row in map(json.loads, log.read_text().splitlines()[1:]) if "screen" in row]
    different = {key_of(row["screen"]) for row in rows}
    check(len(different) >= total, "lost", f"{len(different)} of {total}")
    check(len(rows) == len(different), "repeated", f"{len(rows)} rows of {len(different)} architectures")
    screener = Screener(ProxyConfig(**SCREENING))
    for row in random.Random(0).sample(rows, 4):
        score = screener.screen(row["screen"]).score
        check(abs(score - row["score"]) < 1e-9, "wrong", f"{row['score']} instead of {score}")
    return "done"


if __name__ == "__main__":
    sys.exit("this is a module of campaign.py")
