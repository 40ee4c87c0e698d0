"""Hear one person on a device: an exported model and its contract to sound, 8 ms at a time, without torch."""

__version__ = "0.1.0"
