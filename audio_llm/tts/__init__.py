"""Text to sound: engines of the operating system behind one function."""

from audio_llm.tts.engines import Phone, SynthesizedSpeech, Voice, list_voices, speak, synthesize

__all__ = ["Phone", "SynthesizedSpeech", "Voice", "list_voices", "speak", "synthesize"]
