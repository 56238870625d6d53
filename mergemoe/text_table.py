"""Text tables: aligned columns for a terminal, Markdown for a model card."""

from collections.abc import Iterable, Sequence


def aligned_table(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Return rows as lines of text, each column as wide as its longest cell.

    Args:
        rows: cells of every row, the head's first.
        sides: "<" (left) or ">" (right) for each column; the last one is of all columns that follow, too.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{side}{width}" for side, width in zip(sides.ljust(len(widths), sides[-1]), widths, strict=True)]
    return "\n".join("  ".join(map(format, row, forms)).rstrip() for row in rows)


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
