"""Mutated files: half of them damaged bytes, half valid containers with changed fields, and what reading them may do.

A format names seeds, a way to change fields, and a reader. The driver feeds every input to the reader and records what
escapes: errors outside the project's family, slow inputs, and, by an audit hook, processes that are started, modules
that are imported from the folder, connections, and files that are written elsewhere.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xaihub.errors import XaihubError

SLOW = 10.0  # seconds that no input may take
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**15, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 1e-3, 1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "x", "x" * 5000, "../../escaped", "/etc/passwd", "/dev/zero",
    "~", "a\x00b", "💥", "\u202e", "None", "1e999", [], [[]], {}, [None], {"a": 1}, [0] * 2000, {"url": "http://x"},
    [[[[[1]]]]], "__import__('os').mkdir('canary')", "!!python/name:os.system",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file.

    Attributes:
        name: Its name in the table.
        seeds: Valid files, as bytes.
        change: Returns a valid container with changed fields.
        read: Reads a file as a user would, and uses what it returns.
        file: The name under which an input is stored.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    file: str


@dataclass
class Tally:
    """What happened to the inputs of one format."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    escaped: Counter[str] = field(default_factory=Counter)


class _TooSlow(BaseException):
    """An input took longer than any may."""


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few flips, cuts, repeats and splices."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        match draw.randrange(7):
            case 0 if found:
                found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
            case 1:
                found[place : place + length] = draw.randbytes(length)
            case 2:
                del found[place : place + length]
            case 3:
                found[place:place] = draw.choice((b"\0", b"\xff", b"{", b"[", b'"', b"\n", b"9" * 40, b"-", b"../"))
            case 4:
                number = draw.choice((0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1))
                size = draw.choice((1, 2, 4, 8))
                found[place : place + size] = (number % 256**size).to_bytes(size, draw.choice(("little", "big")))
            case 5:
                del found[place:]
            case _:
                other = draw.randrange(len(found) + 1)
                found[place:place] = found[other : other + length]
    return bytes(found)


def nasty(draw: random.Random) -> Any:
    """Return a value that nobody expects."""
    return draw.choice(NASTY)


def changed(value: Any, draw: random.Random) -> Any:
    """Return JSON types with one to three fields replaced, removed, added or renamed."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = _changed(value, draw)
    return value


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, draw.choice(("extra", "", "__class__", "../x")): nasty(draw)}
            case 2:
                return {**value, key: value[draw.choice(list(value))]}
            case _:
                return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        kept = value[:place] + value[place + 1 :]
        return kept if draw.random() < 0.2 else [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    return nasty(draw)


def inputs(format_: Format, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` inputs, alternately damaged bytes and changed fields, fixed by the seed."""
    seeds = format_.seeds()
    for number in range(count):
        draw = random.Random(f"{format_.name} {seed} {number}")
        data = draw.choice(seeds)
        yield format_.change(data, draw) if number % 2 else damaged(data, draw)


def fuzz(format_: Format, folder: Path, *, count: int = 10**9, seconds: float = 10**9, seed: int = 0) -> Tally:
    """Read inputs until the number or the time is reached."""
    import matplotlib.font_manager  # noqa: F401  its first import on a machine runs fc-list, whatever the input

    inner = folder / "a" / "b" / "inside"
    inner.mkdir(parents=True, exist_ok=True)
    tally, home, started = Tally(), Path.cwd(), time.perf_counter()
    os.chdir(inner)
    try:
        for data in inputs(format_, count, seed):
            _one(format_, inner / format_.file, data, tally)
            tally.seconds = time.perf_counter() - started
            if tally.seconds > seconds:
                break
    finally:
        os.chdir(home)
    outside = [path for path in folder.rglob("*") if path.is_file() and inner not in path.parents]
    tally.escaped.update(f"written outside: {path.relative_to(folder)}" for path in outside)
    tally.escaped.update(f"code run: {path}" for path in folder.rglob("canary*"))
    imported = [name for name, module in sys.modules.items() if str(inner) in str(getattr(module, "__file__", ""))]
    tally.escaped.update(f"imported: {name}" for name in imported)
    return tally


def _one(format_: Format, file: Path, data: bytes, tally: Tally) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    started = time.perf_counter()
    tally.inputs += 1
    try:
        with _watched(file.parent, tally), _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            format_.read(file)
        tally.accepted += 1
    except XaihubError as error:
        if "\n" in str(error):
            tally.escaped[f"{format_.name}: several lines: {error!r:.200}"] += 1
        tally.refused += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "xaihub" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else where.name
        tally.escaped[f"{format_.name}: {type(error).__name__} at {place}: {str(error)[:120]!r}"] += 1
        if keep := os.environ.get("XAIHUB_FUZZ_KEEP"):  # a folder for the inputs that escape
            Path(keep).mkdir(parents=True, exist_ok=True)
            Path(keep, f"{format_.name}-{type(error).__name__}-{tally.inputs}").write_bytes(data)
    tally.slowest = max(tally.slowest, time.perf_counter() - started)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    left = signal.setitimer(signal.ITIMER_REAL, SLOW)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *left)  # that of the test's own limit


_WATCH: list[tuple[Path, Tally]] = []
_HOOKED: list[bool] = []
_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")


@contextmanager
def _watched(folder: Path, tally: Tally) -> Iterator[None]:
    if not _HOOKED:
        sys.addaudithook(_audit)
        _HOOKED.append(True)
    _WATCH.append((folder, tally))
    try:
        yield
    finally:
        _WATCH.pop()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH:
        return
    folder, tally = _WATCH[-1]
    if event in _RUNS:
        tally.escaped[f"{event}: {str(arguments)[:100]}"] += 1
    elif event in _CHANGES or (event == "open" and _writes(arguments)):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        allowed = ("/dev/null", "__pycache__", "matplotlib")  # which makes folders for its settings
        if path and not Path(os.path.abspath(path)).is_relative_to(folder) and not any(a in path for a in allowed):  # noqa: PTH100
            tally.escaped[f"{event} outside: {path[:100]}"] += 1


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2] or 0
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
