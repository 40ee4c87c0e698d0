"""The Denoising LM: corrects hypotheses of a recognizer, trained on its hypotheses of synthetic speech."""
