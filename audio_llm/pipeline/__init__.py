"""The main job: recordings in, transcripts out."""
