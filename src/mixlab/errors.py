"""The one exception for a user's mistake, and the sentence an unknown name gets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real


class UserError(ValueError):
    """Wrong input: one sentence says what, where, and what would be right; the CLI exits with status 2."""


class RunFailed(RuntimeError):
    """The input was right but the work failed (a diverged loss, a full disk); the CLI exits with status 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The clause that helps after an unknown `name`: the nearest match, then every allowed value."""
    options = sorted(options)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choose from: {', '.join(options)}"


def unknown(what: str, name: str, options: Iterable[str]) -> UserError:
    """`unknown("temporal part", "atention", names)`: the error for a name that no registry holds."""
    return UserError(f"unknown {what} '{name}': {nearest(name, options)}")


def check_number(what: str, value: object, kind: type = Real) -> None:
    """UserError unless `value` is a number of `kind`, Real or Integral; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = "a whole number" if kind is Integral else "a number"
        raise UserError(f"{what} must be {wanted}, got {value!r}")


def near_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` nearest to `wanted`, as in "3 and 4", for the sentence that refuses it."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    nearest_two = sorted(divisors, key=lambda d: (abs(d - wanted), d))[:2]
    return " and ".join(map(str, sorted(nearest_two)))
