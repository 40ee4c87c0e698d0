"""Look Once to Hear: one person out of a binaural mixture, known from one noisy look."""
