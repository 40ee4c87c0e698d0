"""Target-speaker extraction (as in arXiv:2405.06289): one enrolled speaker out of a binaural mixture."""
