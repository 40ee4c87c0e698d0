"""Better words and better sound out of recordings and hearing devices."""

from __future__ import annotations

__version__ = "0.1.0"
