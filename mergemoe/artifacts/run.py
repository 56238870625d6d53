"""A run: the choices that it is made of, and its name.

A run has one choice of each of four sections of params.yaml, and may have one of each section that adds to a solve. Its
name is the path of its choices, with what was added at the end: `mixed/pairs/select`, `mixed/pairs/select+tuned`,
`mixed/pairs/select+tuned@q4` if it is quantized.
"""

from typing import NamedTuple


class Run(NamedTuple):
    """The names of a run's choices, in the order of the data; None for what it does without."""

    model: str
    calibrate: str
    cluster: str
    solve: str
    refine: str | None = None
    quantize: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """Return {section: the name of its choice}."""
        return {section: name for section, name in self._asdict().items() if name is not None}

    @property
    def listed(self) -> list[str | None]:
        """Return the names as params.yaml lists them, without what it does without at the end."""
        names = list(self)
        while names[-1] is None:
            names.pop()
        return names

    @property
    def fitted(self) -> str:
        """Return the solve, and the refine if it has one."""
        return "+".join(name for name in (self.solve, self.refine) if name is not None)

    @property
    def solution(self) -> str:
        """Return the last part of its name: the solve, and what was added to it."""
        return "@".join(name for name in (self.fitted, self.quantize) if name is not None)

    @property
    def subject(self) -> str:
        """Return its name among the runs of its model, which scores have, too."""
        return "/".join((self.calibrate, self.cluster, self.solution))

    @property
    def name(self) -> str:
        """Return its name among all runs."""
        return f"{self.model}/{self.subject}"

    @property
    def wildcards(self) -> dict[str, str]:
        """Return the parts of the paths of what is made for it alone, or shared with other runs; see paths.py."""
        return {**self.choices, "fitted": self.fitted, "solution": self.solution}
