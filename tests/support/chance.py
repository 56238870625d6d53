"""Random faults: a seed that is fresh each time and printed, and a time to spend.

MERGEMOE_FAULTS_MINUTES says how long a file of tests/faults works in all, MERGEMOE_FAULTS_SEED repeats a run.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MINUTES = float(os.environ.get("MERGEMOE_FAULTS_MINUTES", "0.5"))
SEED = int(os.environ.get("MERGEMOE_FAULTS_SEED") or random.SystemRandom().randrange(10**9))


def rounds(name: str, least: int = 3) -> Iterator[random.Random]:
    """Yield generators of chance until the time is over, at least some; each one's seed is printed with the name."""
    end, number = time.monotonic() + 60 * MINUTES, 0
    print(f"{name}: MERGEMOE_FAULTS_SEED={SEED}")
    while number < least or time.monotonic() < end:
        yield random.Random(f"{name} {SEED} {number}")
        number += 1


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
