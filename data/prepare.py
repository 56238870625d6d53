"""Write the demo's calibration text, held-out text and BLiMP pairs.

    python data/prepare.py --text DIR --blimp DIR

--text is a folder of <domain>.txt.gz files, which data/passages.py reads; --blimp is a folder of BLiMP's
<paradigm>.jsonl.gz files. The same input gives the same bytes. data/README.md describes each file.
"""

import argparse
import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from passages import DOMAINS, PARTS, read_passages

HERE = Path(__file__).parent
LONGEST = 8000  # characters; leaves out some speeches without blank lines, tables and lists of unrelated sentences
PARADIGMS = (
    "adjunct_island",
    "anaphor_gender_agreement",
    "causative",
    "determiner_noun_agreement_1",
    "ellipsis_n_bar_1",
    "existential_there_quantifiers_1",
    "existential_there_subject_raising",
    "irregular_past_participle_verbs",
    "npi_present_1",
    "principle_A_case_1",
    "regular_plural_subject_verb_agreement_1",
    "wh_questions_object_gap",
)


def draw(passages: Iterable[dict], seed: str, characters: float = math.inf) -> list[dict]:
    """Return passages in random order until they have `characters` characters."""
    passages = list(passages)
    random.Random(seed).shuffle(passages)
    drawn, total = [], 0
    for passage in passages:
        if total >= characters:
            break
        drawn.append(passage)
        total += len(passage["text"])
    return drawn


def write(name: str, lines: Iterable[str]) -> None:
    """Write lines to a gzip file below this folder, without name and time in its header."""
    path = HERE / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as file:
        file.write("".join(lines).encode())


def write_text(name: str, passages: list[dict]) -> None:
    """Write passages as JSON lines, and print their number and characters."""
    write(name, (json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages))
    characters = Counter[str]()
    for passage in passages:
        characters[passage["domain"]] += len(passage["text"])
    print(f"{name}: {len(passages)} passages, {characters.total()} characters {dict(sorted(characters.items()))}")


def main() -> None:
    """Read every part, keep the passages that occur once, draw from them and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of <domain>.txt.gz files")
    parser.add_argument("--blimp", type=Path, required=True, help="folder of <paradigm>.jsonl.gz files")
    args = parser.parse_args()

    read = {(part, domain): read_passages(args.text, domain, part) for part in PARTS for domain in DOMAINS}
    times = Counter(text for passages in read.values() for text in passages)
    usable = {
        (part, domain): [
            {"text": text, "domain": domain} for text in passages if times[text] == 1 and len(text) <= LONGEST
        ]
        for (part, domain), passages in read.items()
    }

    for domain in ("code", "stories", "wiki"):
        write_text(f"calibration/{domain}", draw(usable["calibration", domain], f"calibration/{domain}", 450_000))
    mixed = [p for d in DOMAINS for p in draw(usable["calibration", d], f"calibration/mixed/{d}", 96_000)]
    write_text("calibration/mixed", draw(mixed, "calibration/mixed"))

    heldout = {domain: draw(usable["heldout", domain], f"heldout/{domain}", 60_000) for domain in DOMAINS}
    for domain, passages in heldout.items():
        write_text(f"heldout/{domain}", passages)
    write_text("heldout/mixed", draw((p for d in DOMAINS for p in heldout[d]), "heldout/mixed"))

    for paradigm in PARADIGMS:
        with gzip.open(args.blimp / f"{paradigm}.jsonl.gz", "rt", encoding="utf-8") as file:
            write(f"blimp/{paradigm}", file.readlines()[:100])


if __name__ == "__main__":
    main()
