"""Waveform to N-best list: Whisper, pocketsphinx, ESPnet and a small CTC network with one protocol."""
