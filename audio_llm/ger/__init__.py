"""Correction of N-best lists; here so far the phrase-table corrector, which needs no network."""
