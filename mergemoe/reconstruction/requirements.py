"""The requirements of a refine or another descent: held-out sequences, and parts that the experts have."""

from collections.abc import Collection, Sequence

LEAST = 2  # held-out sequences


def no_part(parts: Sequence[str], roles: Collection[str]) -> str | None:
    """Return why experts of these roles have nothing to fit; None if they have."""
    if "router" in parts or set(parts) & set(roles):
        return None
    return f"`parts` names {', '.join(parts)}, which these experts do not have. Name some of {', '.join(roles)}"


def too_few(heldout: int) -> str | None:
    """Return why this number of held-out sequences does not do; None if it does."""
    if heldout >= LEAST:
        return None
    return (
        f"a descent keeps the weights with the least error on held-out sequences, which takes {LEAST} of them to tell "
        f"a gain from chance; there are {heldout}. Calibrate on more sequences, or raise `holdout`"
    )
