"""Numbers as people read them: counts, bytes, seconds, bits per byte; a missing number is a dash."""

from __future__ import annotations

from datetime import UTC, datetime

MISSING = "–"
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip


def _scaled(value: float, step: float, suffixes: tuple[str, ...]) -> tuple[str, str]:
    """`value` to three significant figures in the largest unit that keeps it at or above 1, and that unit."""
    index = 0
    while abs(value) >= step and index < len(suffixes) - 1:
        value, index = value / step, index + 1
    if abs(float(f"{value:.3g}")) >= step and index < len(suffixes) - 1:  # 999,999 is 1.00M, not 1000k
        value, index = value / step, index + 1
    return significant(value), suffixes[index]


def significant(value: float) -> str:
    """Three significant figures without an exponent: 1234.5 -> '1,234', 12.345 -> '12.3', 0.5 -> '0.50'."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.1:
        return f"{value:.2f}"
    return f"{value:.2g}" if size else "0"


def count(value: float | None) -> str:
    """A number of things: 950 -> '950', 9,500 -> '9,500', 1,234,567 -> '1.23M'."""
    if value is None:
        return MISSING
    if abs(value) < 10_000:
        return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else significant(value)
    number, suffix = _scaled(value, 1000.0, ("", "k", "M", "G", "T", "P", "E"))
    return f"{number}{suffix}"


def work(value: float | None) -> str:
    """Floating-point operations: 2,530,000,000 -> '2.53 GFLOP'."""
    if value is None:
        return MISSING
    number, suffix = _scaled(value, 1000.0, ("", "k", "M", "G", "T", "P", "E"))
    return f"{number} {suffix}FLOP"


def date(iso: str) -> str:
    """An ISO 8601 time as '11 February 2026, 14:32 UTC'; text that is no such time stays as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    if when.tzinfo is not None:
        when = when.astimezone(UTC)
    zone = " UTC" if when.tzinfo is not None else ""
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M}{zone}"


def size(value: float | None) -> str:
    """Bytes in powers of 1024: 512 -> '512 B', 262,144 -> '256 KiB'."""
    if value is None:
        return MISSING
    if abs(value) < 1024:
        return f"{value:,.0f} B"
    number, suffix = _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))
    return f"{number} {suffix}"


def duration(value: float | None) -> str:
    """Seconds as people say them: 0.42 s, 48.2 s, 3 min 12 s, 1 h 04 min."""
    if value is None:
        return MISSING
    if value < 99.95:
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def milliseconds(value: float | None) -> str:
    """Milliseconds to three significant figures, without the unit (the column names it)."""
    return MISSING if value is None else significant(value)


def bits(value: float | None) -> str:
    """Bits per byte to three decimals, with a true minus sign."""
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction as a percentage: 0.0213 -> '2.1%', 0.553 -> '55%'."""
    value = 100 * fraction
    return f"{value:.0f}%" if abs(value) >= 9.95 else f"{value:.1f}%"


def listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
