"""Types of option values of several commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers for argparse's `type`.

    Args:
        low: Smallest value.
        high: Largest value, or None.
    """

    def read(text: str) -> int:
        limits = f"{low} to {high}" if high is not None else f"{low} or more"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {limits}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {limits}")
        return value

    return read


def fraction(text: str) -> float:
    """Read a number from 0 to 1, for argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 to 1") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 1")
    return value


def clock(text: str) -> float:
    """Read seconds, `MM:SS` or `HH:MM:SS`, with or without a fraction, for argparse's `type`."""
    parts = text.strip().split(":")
    try:
        if not all(re.fullmatch(r"\d+", part) for part in parts[:-1]) or not re.fullmatch(r"\d+(\.\d*)?", parts[-1]):
            raise ValueError
        if len(parts) > 3 or any(float(part) >= 60 for part in parts[1:]):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give seconds or HH:MM:SS, as 90.5 or 1:30.5") from None
    return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
