"""A picture of combinations over their bytes, with their lower envelope, as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

from mergemoe.report.score_plots import lower_envelope

COLOURS = ("#777777", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a")
FONT = 'font-family="sans-serif" font-size="13"'
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 900, 520, 70, 20, 220, 50


class Placed(Protocol):
    """A combination: what is drawn of it."""

    @property
    def line(self) -> str:
        """Return the name of its line."""
        ...

    @property
    def bytes(self) -> float:
        """Return its size."""
        ...

    @property
    def kl(self) -> float:
        """Return its KL."""
        ...


def picture(points: Sequence[Placed]) -> str:
    """Return an SVG of KL over MB, both logarithmic: a line per name, and the lower envelope in black."""
    points = [point for point in points if point.kl > 0]  # the full model itself is at no finite place
    sizes, errors = [point.bytes / 1e6 for point in points], [point.kl for point in points]
    x_low, x_high, y_low, y_high = min(sizes) / 1.05, max(sizes) * 1.05, min(errors) / 1.3, max(errors) * 1.3

    def place(size: float, error: float) -> str:
        across = math.log(size / x_low) / math.log(x_high / x_low)
        up = math.log(error / y_low) / math.log(y_high / y_low)
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    def drawn(of: Sequence[Placed], look: str) -> str:
        path = " ".join(place(point.bytes / 1e6, point.kl) for point in of)
        return f'<polyline points="{path}" fill="none" {look}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in _ticks(x_low, x_high):
        x = place(tick, y_low).partition(",")[0]
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(y_low, y_high):
        y = place(x_low, tick).partition(",")[2]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" dominant-baseline="middle">{tick:g}</text>')
    names = list(dict.fromkeys(point.line for point in points))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        dash = f' stroke-dasharray="{2 + 2 * (number // len(COLOURS))} 3"' if number >= len(COLOURS) else ""
        own = sorted((point for point in points if point.line == name), key=lambda point: point.bytes)
        parts.append(drawn(own, f'stroke="{colour}" stroke-width="1.5"{dash}'))
        for point in own:
            x, y = place(point.bytes / 1e6, point.kl).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        y = TOP + 14 + 18 * number
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 15}" x2="{WIDTH - RIGHT + 40}" y1="{y}" y2="{y}" stroke="{colour}"{dash}/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 47}" y="{y + 4}">{escape(name)}</text>')
    lowest = [points[place] for place in lower_envelope([(point.bytes, point.kl) for point in points])]
    parts.append(drawn(lowest, 'stroke="black" stroke-width="6" stroke-opacity="0.18"'))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">MB of the checkpoint</text>')
    parts.append(f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">KL</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
