"""Waveform to N-best list: pocketsphinx, transformers, ESPnet and our own small CTC network behind one protocol."""
