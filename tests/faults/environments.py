"""Commands in hostile surroundings: the result of an ordinary start, or one line that refuses, and never a traceback.

Every case draws a command and up to three faults of the surroundings: of the home directory, the locale, the streams,
the terminal, limits of the system, rights, the working directory, Python's own switches.
"""

import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from multipde.storage.files import SUMS

SECONDS = 240
COMMANDS = {
    "train": (
        *("train", "--data", "folder", "--root", "../images", "--sizes", "8", "16", "--epochs", "1", "1"),
        *("--batch", "20", "--dynamics", "parabolic", "--device", "cpu", "--run", "run"),
    ),
    "convert": ("convert", "../trained", "--size", "8", "--method", "copy", "--out", "converted"),
    "predict": ("predict", "../trained", "../images/test/0/0.png", "--json"),
    "inspect": ("inspect", "../trained"),
    "evaluate": ("evaluate", "../trained", "--sizes", "8", "16", "--device", "cpu"),
    "report": ("report", "../trained"),
    "list": ("list",),
    "completion": ("completion", "bash"),
}
WRITES = {"train": "run", "convert": "converted"}
"""The directory that a command writes."""


@dataclass
class Start:
    """How a process is started; the faults change it."""

    place: Path
    environment: dict[str, str]
    streams: dict[str, Any] = field(default_factory=dict)
    before: list[Callable[[], Any]] = field(default_factory=list)
    python: list[str] = field(default_factory=list)

    def set(self, **values: str | None) -> None:
        for name, value in values.items():
            self.environment.pop(name, None)
            if value is not None:
                self.environment[name] = value

    def limit(self, name: str, amount: int) -> None:
        self.before.append(lambda: resource.setrlimit(getattr(resource, name), (amount, amount)))

    def stranger(self) -> None:
        """Run as a user who has no name and no rights but in the place, where the system lets us."""
        python = Path(sys.executable)
        ways = [*python.parents, *python.resolve().parents, *self.place.parents]
        if os.getuid() or not all(path.stat().st_mode & stat.S_IXOTH for path in ways):
            return
        for path in (self.place, self.place.parent / "trained"):
            for each in (path, *path.rglob("*")):
                os.chown(each, 54321, 54321)
        self.before.append(lambda: (os.setgid(54321), os.setuid(54321)))

    def move(self, name: bytes) -> None:
        """Give the working directory another name."""
        moved = self.place.with_name(os.fsdecode(name))
        if not moved.exists():
            self.place = self.place.rename(moved)


def _closed_reader(start: Start) -> None:
    """Write to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    start.streams["stdout"] = writer


FAULTS: dict[str, list[Callable[[Start], Any]]] = {
    "home": [
        lambda s: s.set(HOME=None),
        lambda s: s.set(HOME="/dev/null"),
        lambda s: s.set(HOME="/nowhere"),
        lambda s: s.set(HOME="/proc"),
        lambda s: s.set(HOME=""),
    ],
    "cache": [
        lambda s: s.set(MULTIPDE_CACHE="/dev/null/x"),
        lambda s: s.set(MULTIPDE_CACHE="/proc"),
        lambda s: s.set(MULTIPDE_CACHE=""),
        lambda s: s.set(XDG_CACHE_HOME="/dev/full"),
        lambda s: s.set(MPLCONFIGDIR="/proc/none"),
    ],
    "locale": [
        lambda s: s.set(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        lambda s: s.set(LC_ALL="xx_XX.UTF-8", LANG="none"),
        lambda s: s.set(PYTHONIOENCODING="ascii"),
        lambda s: s.set(PYTHONIOENCODING="cp1252:strict"),
        lambda s: s.set(PYTHONIOENCODING="utf-16"),
        lambda s: s.set(TZ="Mars/Olympus"),
    ],
    "terminal": [
        lambda s: s.set(COLUMNS="1"),
        lambda s: s.set(COLUMNS="-3", LINES="0"),
        lambda s: s.set(COLUMNS="many"),
        lambda s: s.set(COLUMNS="40", FORCE_COLOR="1"),
        lambda s: s.set(TERM="dumb", NO_COLOR="1"),
        lambda s: s.set(TERM=None),
    ],
    "streams": [
        lambda s: s.before.append(lambda: os.close(1)),
        lambda s: s.before.append(lambda: os.close(0)),
        lambda s: s.before.append(lambda: os.closerange(0, 2)),
        lambda s: s.streams.update(stdout=open("/dev/full", "w")),  # noqa: SIM115
        lambda s: s.streams.update(stdin=open("/dev/zero", "rb")),  # noqa: SIM115
        _closed_reader,
    ],
    "temporary files": [lambda s: s.set(TMPDIR="/nowhere"), lambda s: s.set(TMPDIR="/dev/null")],
    "limits": [
        lambda s: s.limit("RLIMIT_NOFILE", 24),
        lambda s: s.limit("RLIMIT_NOFILE", 64),
        lambda s: s.limit("RLIMIT_FSIZE", 2000),
        lambda s: s.limit("RLIMIT_FSIZE", 0),
        lambda s: s.limit("RLIMIT_AS", 2**30),
        lambda s: s.limit("RLIMIT_STACK", 2**20),
        lambda s: s.limit("RLIMIT_CORE", 0),
    ],
    "rights": [
        lambda s: s.before.append(lambda: os.umask(0o777)),
        lambda s: s.before.append(lambda: os.umask(0)),
        Start.stranger,
        lambda s: (Start.stranger(s), s.before.insert(0, lambda: os.chmod(".", 0o555))),
    ],
    "working directory": [
        lambda s: s.move(b"\xff\xfe"),
        lambda s: s.move("Bär [red]:car: {x}".encode()),
        lambda s: s.move(b"new\nline \x1b[31m"),
        lambda s: s.move(b"-rf"),
        lambda s: (s.place / "torch.py").write_text("raise SystemExit('code of the working directory')"),
        lambda s: (s.place / "matplotlibrc").write_text("backend: nothing\n"),
        lambda s: (s.place / "run").write_text("a file"),
        lambda s: (s.place / "converted").symlink_to("/nowhere"),
        lambda s: s.before.append(lambda: os.rmdir(os.getcwd()) if not os.listdir() else None),
    ],
    "python": [
        lambda s: s.set(PYTHONWARNINGS="error"),
        lambda s: s.set(PYTHONWARNINGS="nonsense"),
        lambda s: s.set(PYTHONOPTIMIZE="2", PYTHONHASHSEED="7"),
        lambda s: s.set(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1"),
        lambda s: s.set(PYTHONPROFILEIMPORTTIME="1", PYTHONFAULTHANDLER="1"),
        lambda s: s.python.extend(["-X", "dev"]),
        lambda s: s.python.append("-I"),
    ],
    "libraries": [
        lambda s: s.set(OMP_NUM_THREADS="many"),
        lambda s: s.set(OMP_NUM_THREADS="0", MKL_NUM_THREADS="-1"),
        lambda s: s.set(MPLBACKEND="nothing"),
        lambda s: s.set(CUDA_VISIBLE_DEVICES="7", CUDA_HOME="/nowhere"),
        lambda s: s.set(WORLD_SIZE="", RANK="x"),
        lambda s: s.set(TORCH_LOGS="nonsense"),
        lambda s: s.set(PIL_MAX_PIXELS="1"),
    ],
}


OTHER_THREADS = {("libraries", 0), ("libraries", 1)}
"""The faults after which a command computes with another number of threads, which changes the last bits."""
UNREAD = 128 + signal.SIGPIPE
UNREAD_CASE = FAULTS["streams"].index(_closed_reader)


def _run(command: str, start: Start) -> tuple[int, str]:
    """Exit status of a command and what it wrote to the standard error."""
    started = [sys.executable, *start.python, str(Path(sys.executable).with_name("multipde")), *COMMANDS[command]]

    def prepare() -> None:
        for change in start.before:
            change()

    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | start.streams
    where = {"cwd": start.place, "env": start.environment, "preexec_fn": prepare}
    try:
        done = subprocess.run(started, stderr=subprocess.PIPE, timeout=SECONDS, **streams, **where)
    except subprocess.TimeoutExpired as error:
        return -1, f"hang: {error.stderr}"
    finally:
        for stream in start.streams.values():
            os.close(stream) if isinstance(stream, int) else stream.close()
    encoding = "utf-16" if start.environment.get("PYTHONIOENCODING") == "utf-16" else "utf-8"
    return done.returncode, done.stderr.decode(encoding, errors="backslashreplace")


def _result(place: Path, command: str) -> str:
    """The checksums of what the command has written that do not depend on time."""
    if command not in WRITES:
        return ""
    lines = (place / WRITES[command] / SUMS).read_text().splitlines()
    return "\n".join(line for line in lines if line.endswith((".safetensors", "config.json")))


def _ordinary(place: Path) -> Start:
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    place.mkdir(parents=True)
    return Start(place, environment | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"})


def prepared(place: Path, commands: Sequence[str]) -> dict[str, str]:
    """Make images and a trained network, run every command once, and return what each writes."""
    start = _ordinary(place / "ordinary")
    for part, num in (("train", 60), ("test", 20)):
        for i in range(num):
            file = place / f"images/{part}/{i % 2}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (200 * (i % 2), 3 * i, 30)).save(file)
    found = {}
    for command in commands:
        status, said = _run(command, start)
        if status:
            raise RuntimeError(f"{command} must work in ordinary surroundings, got {said[-500:]}")
        found[command] = _result(start.place, command)
        if command == "train":
            shutil.copytree(start.place / "run", place / "trained")
    return found


def campaign(num: int, seed: int, place: Path, commands: Sequence[str] = tuple(COMMANDS)) -> dict[str, Any]:
    """Run ``num`` commands, each in surroundings with up to three faults.

    A command whose output nobody reads may end with status 141, as by SIGPIPE.

    Returns:
        Counts: commands that worked as always, and those refused in one line; and a list of all others.
    """
    rng, counts, started, bad = random.Random(seed), Counter(), time.perf_counter(), []
    place.chmod(0o755)
    expected = prepared(place, commands)
    for number in range(num):
        command, faults = rng.choice(commands), rng.sample(list(FAULTS), rng.choice((1, 1, 2, 3)))
        start, which = _ordinary(place / f"case-{number}"), []
        for name in faults:
            which.append((name, rng.randrange(len(FAULTS[name]))))
            FAULTS[name][which[-1][1]](start)
        status, said = _run(command, start)
        own = [line for line in said.splitlines() if line.strip()]
        status = 0 if status == UNREAD and ("streams", UNREAD_CASE) in which and not own else status
        if "Traceback" in said or status < 0 or status > 2:
            kind = "bad"
        elif status == 0:
            is_equal = OTHER_THREADS & set(which) or _result(start.place, command) == expected[command]
            kind = "as always" if is_equal else "different"
        else:
            kind = "refused" if len(own) >= 1 and own[-1].startswith("multipde: ") else "bad"
        counts[kind] += 1
        if kind in ("bad", "different"):
            bad.append([number, command, *which, status, said[-800:]])
            print(json.dumps(bad[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(start.place, ignore_errors=True)
    return {"num": num, **counts, "seconds": round(time.perf_counter() - started, 1)} | ({"bad": bad} if bad else {})
