"""Find the sound files that a user means: files, folders, globs, standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_llm.audio import READABLE, STDIN
from audio_llm.errors import NoAudioFoundError

STDIN_NAME = Path("stdin")  # stem of the outputs of standard input


@dataclass(frozen=True)
class AudioInput:
    """One input file.

    Attributes:
        path: The file; `-` for standard input.
        relative: Its path below the folder or glob that the user named, so that outputs can mirror the tree;
            the bare name for a single file. Two inputs may have the same; `output_stems` makes them distinct.
    """

    path: Path
    relative: Path


def find_audio(inputs: Sequence[str]) -> list[AudioInput]:
    """Return the sound files that the inputs name.

    Files are accepted with any suffix, since their content decides how they are read; a file that does not exist is
    accepted too, so that a batch reports it and continues. Folders are searched recursively for the suffixes in
    `audio.READABLE`, in either case, without hidden files and folders. Globs (`*`, `?`, `[`; `**` for any depth) are
    expanded if the shell has not done so. Duplicates are removed.

    Args:
        inputs: Paths and globs; `-` for standard input.

    Returns:
        In the order of the inputs, those of a folder or glob sorted by path.

    Raises:
        NoAudioFoundError: There is no sound file.
    """
    by_path: dict[str, AudioInput] = {}
    for name in inputs:
        for item in _expand(name):
            by_path.setdefault(os.path.realpath(item.path) if str(item.path) != STDIN else STDIN, item)
    if not by_path:
        raise NoAudioFoundError(
            f"no sound file in {', '.join(inputs) or 'the inputs'}",
            remedy="give files, or folders that hold .wav, .flac, .mp3, .m4a, .mp4 or other sound and video files",
        )
    return list(by_path.values())


def _expand(name: str) -> Iterator[AudioInput]:
    path = Path(name)
    if name == STDIN:
        yield AudioInput(Path(STDIN), STDIN_NAME)
    elif path.is_dir():
        yield from _below(path, path)
    elif os.path.lexists(path) or not glob.has_magic(name):
        yield AudioInput(path, Path(path.name))
    else:
        root = _before_magic(path)
        for match in sorted(map(Path, glob.glob(name, recursive=True))):
            if match.is_dir():
                continue  # `**` gives folders and what is in them
            yield AudioInput(match, match.relative_to(root))


def _below(folder: Path, root: Path) -> Iterator[AudioInput]:
    """Yield the sound files below a folder; links to folders, which may form cycles, are not followed."""
    names: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(parent, name) for name in files if not name.startswith(".") and name.lower().endswith(READABLE)]
    for path in sorted(names):
        if path.is_file() or not path.exists():  # pipes and devices would block
            yield AudioInput(path, path.relative_to(root))


def _before_magic(path: Path) -> Path:
    """Return the leading part of a glob that holds no special characters."""
    parts: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
