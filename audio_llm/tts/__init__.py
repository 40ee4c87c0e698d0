"""Text to sound: engines of the operating system behind one function."""

from audio_llm.tts.engines import Phone, Spoken, Voice, list_voices, speak, synthesize

__all__ = ["Phone", "Spoken", "Voice", "list_voices", "speak", "synthesize"]
