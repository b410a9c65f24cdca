"""Numbers for people: scores, shares and durations as short text."""

from __future__ import annotations

PERCENT = "%"  # the unit of values that are shares between 0 and 1


def number(value: float) -> str:
    """Three significant digits, without an exponent where people need none: `0.00612`, `4.92`, `1,234`."""
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e9:
        return f"{value:.3g}"
    digits = max(0, 3 - len(str(int(abs(value)))) if abs(value) >= 1 else 2 - int(f"{value:e}".split("e")[1]))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def figure(value: float, unit: str) -> str:
    """A value in its unit, which is not part of the text: shares in percent, other numbers as they are."""
    return f"{100 * value:.1f}" if unit == PERCENT else number(value)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
