"""TouchTTS: a language model turns text into semantic tokens and a flow these into speech; the LM also transcribes."""
