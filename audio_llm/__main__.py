"""`python -m audio_llm` is the command `audio-llm`."""

from __future__ import annotations

import sys

from audio_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
