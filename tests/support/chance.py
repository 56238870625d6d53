"""Random faults: a seed that is fresh each time and printed, and a time to spend.

MERGEMOE_FAULTS_MINUTES says how long a file of tests/faults works in all, MERGEMOE_FAULTS_SEED repeats a run.
"""

import faulthandler
import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from mergemoe.errors import UserError

MINUTES = float(os.environ.get("MERGEMOE_FAULTS_MINUTES", "0.5"))
HANGS = 600  # seconds of a round after which nothing is waited for
SEED = int(os.environ.get("MERGEMOE_FAULTS_SEED") or random.SystemRandom().randrange(10**9))


def rounds(name: str, least: int = 3) -> Iterator[random.Random]:
    """Yield generators of chance until the time is over, at least some; each one's seed is printed with the name."""
    end, number = time.monotonic() + 60 * MINUTES, 0
    print(f"{name}: MERGEMOE_FAULTS_SEED={SEED}")
    try:
        while number < least or time.monotonic() < end:
            # No signal reaches Python inside a library that loops: then the run ends, with the stack of each thread.
            faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__)
            yield random.Random(f"{name} {SEED} {number}")
            number += 1
    finally:
        faulthandler.cancel_dump_traceback_later()


def examples(name: str, strategy: SearchStrategy[Any], check: Callable[[Any], None], each: int = 25) -> None:
    """Call a check with examples of a strategy until the time is over, `each` of them from every seed.

    The check counts what it sees and does not raise: all failures of a run are told together.
    """
    for chance in rounds(name):
        run = seed(chance.getrandbits(64))(given(strategy)(check))
        every = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}
        settings(max_examples=each, database=None, **every)(run)()


class Endless(BaseException):
    """What was called did not end in time."""


@contextmanager
def limited(seconds: float, megabytes: int) -> Iterator[None]:
    """Interrupt what takes more of the CPU, or ten times as long, or more memory than this process has and so much.

    It may call itself as deeply as a process that begins here: hypothesis allows itself more. What hypothesis keeps is
    a gigabyte after ten minutes, and a collection of its garbage takes seconds, so there is none meanwhile.
    """

    def stop(*_: Any) -> None:
        raise Endless(f"not done after {seconds} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    frame, depth, deepest = sys._getframe(), 0, sys.getrecursionlimit()
    while frame := frame.f_back:
        depth += 1
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds)}
    old = {number: signal.signal(number, stop) for number in timers}
    for timer, after in timers.values():
        signal.setitimer(timer, after)
    sys.setrecursionlimit(depth + 1000)
    gc.disable()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000, hard))
    try:
        yield
    finally:
        gc.enable()
        sys.setrecursionlimit(deepest)
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, old[number])
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(call: Callable[[], Any], seconds: float = 5.0, megabytes: int = 500) -> tuple[str, Any]:
    """Return what a call leads to, in a word, and its value or its error."""
    try:
        with limited(seconds, megabytes):
            return "read", call()
    except UserError as error:
        return "refused", error
    except Endless as error:
        return "slow", error
    except MemoryError as error:
        return "memory", error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return f"raw {type(error).__name__}", error


def unclear(message: str) -> str | None:
    """Return what makes the message of a refusal hard to read; None if nothing does."""
    lines = message.splitlines()
    if max(map(len, lines), default=0) > 1000 or len(message) > 20_000:
        return f"a message of {len(message)} letters"
    if not all(line.isprintable() for line in lines):
        return "a message with letters that are not printable"
    return None


def tell(name: str, counts: Counter[str]) -> None:
    """Print the counts of a file of tests: tried, and what was seen."""
    print(f"{name}: tried {sum(counts.values())}: " + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))


def mutated(content: bytes, chance: random.Random, others: list[bytes]) -> tuple[str, bytes]:
    """Return what was done to the bytes of a file, and the bytes."""
    size = len(content)
    at = chance.randrange(size)
    length = min(chance.choice([1, 4, 16, 512, 4096]), size - at)
    how = chance.choice(["flip", "flip", "flip", "zero", "noise", "cut", "double", "insert", "digit", "head", "other"])
    if how == "flip":
        changed = bytearray(content)
        changed[at] ^= 1 << chance.randrange(8)
        return how, bytes(changed)
    if how == "zero":
        return how, content[:at] + bytes(length) + content[at + length :]
    if how == "noise":
        return how, content[:at] + chance.randbytes(length) + content[at + length :]
    if how == "cut":
        return how, content[:at]
    if how == "double":
        return how, content[: at + length] + content[at : at + length] + content[at + length :]
    if how == "insert":
        return how, content[:at] + chance.randbytes(length) + content[at:]
    if how == "digit":
        places = [place for place, byte in enumerate(content[:200_000]) if 48 <= byte <= 57]
        place = chance.choice(places) if places else at
        return how, content[:place] + str(chance.randrange(10)).encode() + content[place + 1 :]
    if how == "head":
        place = chance.randrange(min(size, 400))
        return how, content[:place] + chance.randbytes(chance.choice([1, 8])) + content[place + 8 :]
    return how, chance.choice(others) if others else content[::-1]


def write_unseen(path: Path, content: bytes) -> None:
    """Write a file and give it the time that it had, so that nothing but its bytes tells of the change."""
    stat = path.stat()
    path.unlink()  # it may be a hard link
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def traced(error: Any) -> str:
    """Return what an error says, shortened, and the last line of mergemoe/ that it came through."""
    if not isinstance(error, BaseException):
        return ""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/mergemoe/" in frame.filename]
    return f"{str(error)[:300]!r}" + (f" at {own[-1].filename}:{own[-1].lineno}" if own else "")
