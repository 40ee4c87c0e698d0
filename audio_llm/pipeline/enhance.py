"""Batch enhancement of recordings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_llm.audio import WRITABLE
from audio_llm.gense.enhance import Enhancement, Enhancer
from audio_llm.pipeline.files import AudioInput


class EnhanceWorker:
    """Enhances files for `run_batch`.

    Args:
        enhancer: The enhancer.
        mix: Fraction of the original recording in the output, 0 to 1.
    """

    ahead = 0

    def __init__(self, enhancer: Enhancer, mix: float = 0.0) -> None:
        self._enhancer, self._mix = enhancer, mix

    def ready(self) -> None:
        """Everything is loaded."""

    def begin(
        self, source: str | Path, name: str = "", progress: Callable[[float], None] | None = None
    ) -> PendingEnhancement:
        """Prepare one file; it is enhanced while its output is written."""
        return PendingEnhancement(self._enhancer, Path(source), self._mix, progress)


@dataclass(frozen=True)
class PendingEnhancement:
    """One file to enhance.

    Attributes:
        enhancer: The enhancer.
        source: The recording.
        mix: As in `EnhanceWorker`.
        progress: Called with the seconds of sound just finished.
    """

    enhancer: Enhancer
    source: Path
    mix: float
    progress: Callable[[float], None] | None

    def done(self) -> bool:
        """Return True: nothing has to be waited for."""
        return True

    def finish(self) -> PendingEnhancement:
        """Return itself, for `write_enhanced`."""
        return self


def write_enhanced(pending: PendingEnhancement, outputs: Sequence[Path]) -> Enhancement:
    """Enhance a file and write the output."""
    (output,) = outputs
    output.parent.mkdir(parents=True, exist_ok=True)
    return pending.enhancer.enhance_file(pending.source, output, pending.mix, pending.progress)


def formats_of(item: AudioInput) -> tuple[str]:
    """Return the output format of an input: that of the input if it can be written, else wav."""
    suffix = os.path.splitext(item.relative.name)[1].lower()
    return (suffix[1:] if suffix in WRITABLE else "wav",)
