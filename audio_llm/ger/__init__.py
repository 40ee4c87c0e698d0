"""Correction of N-best lists: the neural corrector and the phrase corrector, which needs no network."""
