"""Run the command line as `python -m audio_llm_realtime`."""

import sys

from audio_llm_realtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
