"""Denoising LM: recogniser hypothesis to text, trained on hypotheses of synthetic speech."""
