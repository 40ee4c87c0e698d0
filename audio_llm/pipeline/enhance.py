"""Many recordings through an enhancer, as a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_llm.audio import WRITABLE
from audio_llm.gense.enhance import Enhancement, Enhancer
from audio_llm.pipeline.files import AudioInput


class EnhanceWorker:
    """What `run_batch` calls for each file.

    Args:
        enhancer: Does the work.
        mix: 0 is only the enhanced sound, 1 the recording as it was.
    """

    ahead = 0

    def __init__(self, enhancer: Enhancer, mix: float = 0.0) -> None:
        self._enhancer, self._mix = enhancer, mix

    def ready(self) -> None:
        """Everything is loaded."""

    def begin(
        self, source: str | Path, name: str = "", progress: Callable[[float], None] | None = None
    ) -> PendingEnhancement:
        """Plan one file; the work is done as its output is written."""
        return PendingEnhancement(self._enhancer, Path(source), self._mix, progress)


@dataclass(frozen=True)
class PendingEnhancement:
    """One file to enhance.

    Attributes:
        enhancer: Does the work.
        source: The recording.
        mix: As in `EnhanceWorker`.
        progress: Takes the seconds just finished.
    """

    enhancer: Enhancer
    source: Path
    mix: float
    progress: Callable[[float], None] | None

    def done(self) -> bool:
        """The work waits for nothing."""
        return True

    def finish(self) -> PendingEnhancement:
        """Return itself, for `write_enhanced`."""
        return self


def write_enhanced(pending: PendingEnhancement, outputs: Sequence[Path]) -> Enhancement:
    """Enhance a file into its output."""
    (output,) = outputs
    output.parent.mkdir(parents=True, exist_ok=True)
    return pending.enhancer.enhance(pending.source, output, pending.mix, pending.progress)


def formats_of(item: AudioInput) -> tuple[str]:
    """Return the format of an input's output: its own where that can be written, else wav."""
    suffix = os.path.splitext(item.relative.name)[1].lower()
    return (suffix[1:] if suffix in WRITABLE else "wav",)
