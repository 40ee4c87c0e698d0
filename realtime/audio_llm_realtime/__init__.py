"""Run an exported target-speaker model on a device: binaural audio in and out in 8 ms chunks, without torch."""

__version__ = "0.1.0"
