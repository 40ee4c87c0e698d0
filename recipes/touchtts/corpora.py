"""Training data of TouchTTS: recorded speech, and book sentences spoken by other synthesizers."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from noisy_sets import row_part

from audio_llm import audio
from audio_llm.dlm.corpus import drop_shared, read_book
from audio_llm.manifest import read_manifest
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.touchtts.data import TtsUtterance
from audio_llm.tts import synthesize

VOICE_OF = {  # corpus to voice: one speaker, or a group of speakers
    "kathleen": "kathleen",
    "cmu_arctic_few": "reader",
    "librispeech_dev_clean_mp3": "reader",
    "librispeech_test_other": "reader",
    "librispeech_test_clean_few": "reader",
    "speechocean762": "learner",
}
SYNTHETIC_VOICES = ("flite:slt", "flite:rms", "flite:awb", "flite:kal16")
READ_ALOUD = ("emma", "pride_and_prejudice", "treasure_island")  # read in LibriSpeech: not used as training text


def recorded(folder: Path, part: str) -> Iterator[TtsUtterance]:
    """Yield the recorded utterances of a part (`train`, `tune` or `test`); no text of the test is in another part."""
    rows = [row for row in _rows(folder) if row.get("text")]
    tested = {DEFAULT_NORMALIZER(row["text"]) for row in rows if row_part(row) == "test"}
    for row in rows:
        if row_part(row) == part and (part == "test" or DEFAULT_NORMALIZER(row["text"]) not in tested):
            waveform = audio.read(folder / "audio" / row["path"])
            yield TtsUtterance(row["id"], VOICE_OF[row["corpus"]], row["speaker"], _cased(row["text"]), waveform)


def held_out_texts(folder: Path) -> list[str]:
    """Return the normalized texts of validation and test."""
    rows = [row for row in _rows(folder) if row.get("text") and row_part(row) != "train"]
    return [DEFAULT_NORMALIZER(row["text"]) for row in rows]


def synthetic(folder: Path, count: int, first: int = 0) -> Iterator[TtsUtterance]:
    """Yield `count` book sentences, spoken by synthesizers in turn; none shares eight words with a held-out text."""
    sentences = [
        sentence
        for path in sorted((folder / "text").glob("*.txt"))
        if path.stem not in (*READ_ALOUD, "PROVENANCE")
        for sentence in read_book(path, max_words=18)
    ]
    usable = drop_shared(sentences, held_out_texts(folder))
    usable.sort(key=lambda sentence: hashlib.blake2b(sentence.id.encode()).digest())
    for number, sentence in enumerate(usable[first : first + count], first):
        voice = SYNTHETIC_VOICES[number % len(SYNTHETIC_VOICES)]
        if number % 500 == 0:
            logging.info("%d of %d sentences synthesized", number - first, count)
        yield TtsUtterance(
            sentence.id, voice, voice, sentence.text, synthesize(sentence.text, voice), is_synthetic=True
        )


def from_manifest(manifest: Path) -> Iterator[TtsUtterance]:
    """Yield the utterances of a manifest, such as that of `audio-llm prepare`; each speaker is a voice."""
    for row in read_manifest(manifest):
        speaker = row.speaker or manifest.parent.name
        if row.text:
            yield TtsUtterance(
                row.audio_filepath.stem, speaker, speaker, _cased(row.text), audio.read(row.audio_filepath)
            )


def _cased(text: str) -> str:
    """Return a text in capitals in lower case, since capitals are spelled."""
    return text.lower() if text.isupper() else text


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    for corpus in VOICE_OF:
        path = folder / "audio" / "speech" / corpus / "manifest.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines:
            logging.warning("no manifest of %s", corpus)
        yield from ({**json.loads(line), "corpus": corpus} for line in lines)
