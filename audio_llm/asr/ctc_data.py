"""Training data of the CTC recognizer: recordings and synthetic speech as shards of log-mel features and text.

Features are kept in 8 bits (`features.to_uint8`, an error of at most 0.22 dB): 29 MB for an hour of sound, a quarter
of the size of the waveform, and training needs neither an audio library nor a TTS engine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm import features
from audio_llm.atomic import write_text
from audio_llm.errors import AudioLLMError, DataError
from audio_llm.simulation import augment, mono
from audio_llm.simulation.augment import Augmentation, degrade, draw_voice
from audio_llm.training.config import renamed, with_former_keys
from audio_llm.training.shards import encode_text, write_index, write_shard
from audio_llm.tts import Phone, SynthesizedSpeech, speak
from audio_llm.tts.engines import PHONES

logger = logging.getLogger(__name__)

_MOST_FAILED = 0.05  # of a shard; more means a systematic error rather than single unusual sentences


@dataclass(frozen=True)
class SpeechItem:
    """One utterance to pack.

    Attributes:
        id: Its name.
        words: Normalized text, the target of the network.
        text: Text to synthesize; empty for a recording.
        voice: Name of a TTS voice; empty for a recording.
        audio: Path of a recording; empty for synthetic speech.
        seed: Seed of all random draws of this item.
    """

    id: str
    words: str
    text: str = ""
    voice: str = ""
    audio: str = ""
    seed: int = 0


_SYNTHESIZED = Augmentation(
    speed=(0.85, 1.15), voice_shift=(0.9, 1.12), noisy_prob=0.5, snr_db=(8.0, 40.0), room_prob=0.3, rt60_s=(0.1, 0.5)
)
_RECORDED = Augmentation(voice_shift=(0.9, 1.12), noisy_prob=0.2, snr_db=(8.0, 40.0), room_prob=0.0)


@dataclass(frozen=True)
class PackConfig:
    """How sound is augmented and packed.

    Attributes:
        synthesized: Augmentation of synthetic speech.
        recorded: Augmentation of recordings; its speed is not used.
        max_seconds: Longest utterance in seconds; longer ones are skipped and counted.
        shard_items: Utterances in a shard.
    """

    synthesized: Augmentation = renamed("spoken", default_factory=lambda: _SYNTHESIZED)  # noqa: RUF009 (a dataclass field)
    recorded: Augmentation = field(default_factory=lambda: _RECORDED)
    max_seconds: float = 20.0
    shard_items: int = 200


CLEAN = PackConfig(augment.CLEAN, augment.CLEAN)


@dataclass(frozen=True)
class PackReport:
    """Counts of one run of `pack`.

    Attributes:
        items: Number of packed utterances.
        hours: Their duration in hours.
        skipped: Number of skipped utterances by reason.
        left: Shards not yet written because of the time limit; 0 where the pack is complete.
    """

    items: int
    hours: float
    skipped: dict[str, int]
    left: int


@dataclass(frozen=True)
class _Job:
    config: PackConfig
    items: tuple[SpeechItem, ...]
    path: Path
    noises: tuple[np.ndarray, ...] = field(repr=False, default=())


def items_from_rows(
    rows: Iterable[dict[str, Any]], root: Path, copies: int = 1, seed: int = 0, normalizer: str = "spoken"
) -> list[SpeechItem]:
    """Return recordings to pack from rows of a manifest.

    Args:
        rows: Each with `audio_filepath` (or `path`), `text` and optionally `id`; rows without text are skipped.
        root: Folder that the paths are relative to.
        copies: How often each recording is packed: once unchanged, then with augmentation.
        seed: Base seed.
        normalizer: Name of the text normalizer.
    """
    from audio_llm.text import get_normalizer

    normalize = get_normalizer(normalizer)
    items = []
    for row in rows:
        if row.get("text"):
            path = root / str(row.get("audio_filepath") or row["path"])
            name, words = str(row.get("id", path.stem)), normalize(str(row["text"]))
            for copy in range(copies):
                chosen = 0 if copy == 0 else _seed(name, copy, seed)
                items.append(SpeechItem(f"{name}/{copy}", words, audio=str(path), seed=chosen))
    return items


def items_from_texts(texts: Iterable[tuple[str, str, str]], voices: Sequence[str], seed: int = 0) -> list[SpeechItem]:
    """Return texts to synthesize, each with a uniformly drawn voice.

    Args:
        texts: (id, written text, normalized words).
        voices: Names of TTS voices.
        seed: Base seed.
    """
    items = []
    for name, text, words in texts:
        drawn = _seed(name, seed)
        items.append(SpeechItem(name, words, text=text, voice=voices[drawn % len(voices)], seed=drawn))
    return items


def pack(
    items: Sequence[SpeechItem],
    folder: Path,
    config: PackConfig | None = None,
    workers: int = 1,
    max_minutes: float | None = None,
    noises: Sequence[np.ndarray] = (),
) -> PackReport:
    """Write the shards of a pack that do not exist yet; the last one completes it for `ShardReader`.

    A shard depends on its items, the configuration and the noises alone: an interrupted run resumes where it
    stopped, with the same result. Rows hold `mel` (F, 80) uint8, `phones` (F,) uint8 (see
    `phone_labels`), `text` and `id` (UTF-8).

    Args:
        items: Utterances in the order of packing.
        folder: Folder of the pack.
        config: How sound is augmented; `CLEAN` leaves it unchanged.
        workers: Processes.
        max_minutes: Time limit for starting another shard.
        noises: Noise recordings, each (N,) float32 at 16 kHz; without any, colored noise is generated.

    Raises:
        DataError: No items, or the folder was made from other items or another configuration.
        AudioLLMError: More than 5 % of a shard failed.
    """
    config = config or PackConfig()
    if not items:
        raise DataError("there is nothing to pack", path=folder, remedy="check the manifest or the texts")
    _check_plan(items, config, noises, folder)
    parts = [tuple(items[i : i + config.shard_items]) for i in range(0, len(items), config.shard_items)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(parts))]
    jobs = [
        _Job(config, part, path, tuple(noises))
        for part, path in zip(parts, paths, strict=True)
        if not path.with_suffix(".json").exists()
    ]
    end = time.monotonic() + 60 * max_minutes if max_minutes is not None else float("inf")
    if workers > 1 and len(jobs) > 1:
        _make_in_parallel(jobs, workers, end)
    else:
        for job in jobs:
            if time.monotonic() < end:
                _make_shard(job)
    return _finish(folder, paths)


def make_waveform(item: SpeechItem, config: PackConfig, noises: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Read or synthesize an item and augment it; a recording with seed 0 stays unchanged.

    Returns:
        (T,) float32 at 16 kHz in -1..1.
    """
    return make_sound(item, config, noises).waveform


def make_sound(item: SpeechItem, config: PackConfig, noises: Sequence[np.ndarray] = ()) -> SynthesizedSpeech:
    """Do as `make_waveform`; synthetic speech also has its phones with their times."""
    rng = np.random.default_rng(item.seed)
    variation = config.recorded if item.audio else config.synthesized
    voice = draw_voice(variation, rng)
    shift = voice["voice_shift"]
    if item.audio:
        from audio_llm import audio

        speech = SynthesizedSpeech(audio.read(item.audio))
        if item.seed == 0:
            return speech
    else:
        speech = speak(item.text, item.voice, voice["speed"] / shift)
    waveform = degrade(mono.shift_voice(speech.waveform, shift), variation, rng, noises)[0]
    return SynthesizedSpeech(waveform, tuple(Phone(phone.symbol, phone.end_s / shift) for phone in speech.phones))


def phone_labels(phones: Sequence[Phone], frames: int) -> np.ndarray:
    """Return the phone at the middle of each feature frame: (frames,) uint8, 1 + its index in `PHONES`, 0 unknown."""
    numbers = {symbol: number for number, symbol in enumerate(PHONES, 1)}
    ends = np.array([phone.end_s for phone in phones])
    middles = (np.arange(frames) * features.HOP_LENGTH + features.WIN_LENGTH / 2) / features.SAMPLE_RATE
    known = np.array([*(numbers.get(phone.symbol, 0) for phone in phones), 0], dtype=np.uint8)
    return known[np.searchsorted(ends, middles)]


def _make_in_parallel(jobs: list[_Job], workers: int, end: float) -> None:
    """Make shards in several processes; hand out one at a time, so that none starts after `end` (monotonic seconds)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: set[Future[None]] = set()
        for job in jobs:
            if len(running) >= workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            if time.monotonic() >= end:
                break
            running.add(pool.submit(_make_shard, job))
        for future in running:
            future.result()


def _make_shard(job: _Job) -> None:
    """Write one shard, then its `.json` of counts, which marks it as done."""
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, np.ndarray]] = []
    skipped: dict[str, int] = {}
    failed = frames = 0
    for item in job.items:
        try:
            row = _make_row(item, job)
        except AudioLLMError as error:
            logger.warning("%s: %s", item.id, error)
            failed, row = failed + 1, type(error).__name__
        if isinstance(row, str):
            skipped[row] = skipped.get(row, 0) + 1
        else:
            rows.append(row)
            frames += len(row["mel"])
    if failed > max(1.0, _MOST_FAILED * len(job.items)):
        raise AudioLLMError(
            f"{failed} of {len(job.items)} items failed", path=job.path, remedy="see the warnings above"
        )
    if rows:
        write_shard(rows, job.path)
    done = {"items": len(rows), "frames": frames, "skipped": skipped}
    write_text(job.path.with_suffix(".json"), json.dumps(done))


def _make_row(item: SpeechItem, job: _Job) -> dict[str, np.ndarray] | str:
    """Return the row of an item, or the reason why it is skipped."""
    import torch

    from audio_llm.asr.ctc_model import encode_symbols, frames_needed, output_lengths

    numbers = encode_symbols(item.words)
    if not numbers:
        return "empty text" if numbers is not None else "symbols that are not letters"
    sound = make_sound(item, job.config, job.noises)
    waveform = sound.waveform
    if waveform.size > job.config.max_seconds * features.SAMPLE_RATE:
        return "too long"
    mel, frames = features.log_mel(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    if frames_needed(numbers) > int(output_lengths(frames)):
        return "more letters than frames"
    return {
        "mel": features.to_uint8(mel[0]).numpy(),
        "phones": phone_labels(sound.phones, int(frames)),
        "text": encode_text(item.words),
        "id": encode_text(item.id),
    }


def _finish(folder: Path, paths: list[Path]) -> PackReport:
    """Count the utterances of all shards; write the index once all shards exist."""
    skipped: dict[str, int] = {}
    items = frames = left = 0
    for path in paths:
        if not path.with_suffix(".json").exists():
            left += 1
            continue
        done = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        items, frames = items + done["items"], frames + done["frames"]
        for reason, count in done["skipped"].items():
            skipped[reason] = skipped.get(reason, 0) + count
    if not left:
        write_index(folder, [path.name for path in paths if path.exists()], {"frames": frames, "skipped": skipped})
    return PackReport(items, frames / 360_000, skipped, left)


def _check_plan(items: Sequence[SpeechItem], config: PackConfig, noises: Sequence[np.ndarray], folder: Path) -> None:
    digest = hashlib.sha256(json.dumps(with_former_keys(config), sort_keys=True).encode())
    for item in items:
        digest.update(repr(item).encode())
    for noise in noises:
        digest.update(noise.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.txt"
    if not plan.exists():
        write_text(plan, digest.hexdigest())
    elif plan.read_text(encoding="utf-8") != digest.hexdigest():
        remedy = "give another folder, or the items and settings it was made with"
        raise DataError("holds a pack of other items or settings", path=folder, remedy=remedy)


def _seed(*parts: object) -> int:
    """Return a positive 63-bit seed that depends on the parts alone."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1
