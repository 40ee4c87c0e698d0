"""TouchTTS: a language model says text in semantic tokens, a flow makes speech of them; the same model transcribes."""
