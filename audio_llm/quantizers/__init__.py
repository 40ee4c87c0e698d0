"""Continuous vectors to numbers and back: what tokenizers and codecs are cut at."""
