"""Text to speech: engines of the operating system and TouchTTS behind one function."""

from audio_llm.tts.engines import Phone, SynthesizedSpeech, Voice, list_voices, speak, synthesize

__all__ = ["Phone", "SynthesizedSpeech", "Voice", "list_voices", "speak", "synthesize"]
