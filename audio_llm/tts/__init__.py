"""Text to sound: engines of the operating system behind one function."""

from audio_llm.tts.engines import Voice, list_voices, synthesize

__all__ = ["Voice", "list_voices", "synthesize"]
