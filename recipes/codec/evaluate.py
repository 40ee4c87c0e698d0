"""Figures of tokenizers and codecs on people and noises that no training heard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from audio_llm.codec.codec import SpeechCodec, to_level
from audio_llm.errors import DataError
from audio_llm.metrics import word_errors
from audio_llm.simulation import mono
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.sound_metrics import dnsmos, pesq_wb, stoi
from audio_llm.tokenizer.base import Tokens
from audio_llm.tokenizer.s3 import S3Tokenizer

NOISES = ("white", "babble", "recorded")
SNRS_DB = (20, 10, 5, 0)
SEEN_VOICE = "kathleen"  # is in training, with other prompts: reported apart
_SEED = 5
_STRETCH_S = 3.0  # of the timing
_CODEBOOK_PASSES = 3  # over the test, at other levels, for counting codes


@dataclass(frozen=True)
class _Heard:
    """What a tokenizer made of a set in one condition."""

    tokens: list[np.ndarray]
    words: list[str]


def tokenizer_table(models: Sequence[str], test: Path, limit: int) -> Iterator[str]:
    """Yield the lines of a table: a condition a line, a model a column."""
    pack = SpeechPack(test, labelled=True)
    chosen = _chosen(pack, limit)
    references = [pack.words[number] for number in chosen]
    tokenizers = {_label(name): S3Tokenizer.load(name) for name in models}
    yield f"{len(chosen)} utterances of {len({pack.speakers[number] for number in chosen})} people"
    head = [f"{name}: WER % | ids changed % | level distance" for name in tokenizers]
    yield f"| condition | {' | '.join(head)} |"
    yield "|---" * (1 + 3 * len(tokenizers)) + "|"
    clean = {name: _hear(t, [_sound(pack, number) for number in chosen]) for name, t in tokenizers.items()}
    cells = [f"{100 * word_errors(references, heard.words).rate:.1f} | - | -" for heard in clean.values()]
    yield f"| clean | {' | '.join(cells)} |"
    for noise in NOISES:
        for snr_db in SNRS_DB:
            sounds = [_with_noise(pack, number, noise, snr_db) for number in chosen]
            cells = []
            for name, tokenizer in tokenizers.items():
                heard = _hear(tokenizer, sounds)
                wer = word_errors(references, heard.words).rate
                pairs = list(zip(clean[name].tokens, heard.tokens, strict=True))
                changed = np.concatenate([a != b for a, b in pairs]).mean()
                distance = np.concatenate([_level_distance(tokenizer, a, b) for a, b in pairs]).mean()
                cells.append(f"{100 * wer:.1f} | {100 * changed:.0f} | {distance:.2f}")
            yield f"| {noise}, {snr_db} dB | {' | '.join(cells)} |"
    for name, tokenizer in tokenizers.items():
        tokens = np.concatenate(clean[name].tokens)
        shares = np.bincount(tokens, minlength=tokenizer.size) / len(tokens)
        entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
        order = np.random.default_rng(_SEED).permutation(len(chosen))
        shuffled = word_errors([references[place] for place in order], clean[name].words).rate
        used = f"{int((shares > 0).sum())} of {tokenizer.size} ids used"
        yield f"{name}: {entropy:.2f} bits a token, {used}, WER of other texts {100 * shuffled:.1f} %"


def codec_table(models: Sequence[str], packs: Path, limit: int) -> Iterator[str]:
    """Yield the lines of a table: a codec a line; the people are in no training."""
    pack = SpeechPack(packs / "test")
    names = [number for number in range(len(pack)) if pack.speakers[number] != SEEN_VOICE]
    chosen = _chosen(pack, limit, names)
    sounds = {number: _sound(pack, number) * np.float32(to_level(_sound(pack, number))) for number in chosen}
    yield f"{len(chosen)} utterances of {len({pack.speakers[number] for number in chosen})} unseen people"
    yield (
        "| codec | codes/s | PESQ-WB | STOI (codes shuffled) | ESTOI | OVRL (original) | codes used | perplexity "
        "| x real time |"
    )
    yield "|---" * 9 + "|"
    for name in models:
        codec = SpeechCodec.load(name)
        rows, ovrl, codes, shuffled = [], [], [], []
        for sound in sounds.values():
            decoded = round_trip(codec, sound)
            try:
                rows.append((pesq_wb(sound, decoded), stoi(sound, decoded), stoi(sound, decoded, extended=True)))
            except DataError:  # too short for PESQ
                continue
            ovrl.append((dnsmos(decoded).ovrl, dnsmos(sound).ovrl))
            shuffled.append(stoi(sound, round_trip(codec, sound, shuffle=True)))
        for passed in range(_CODEBOOK_PASSES):
            for sound in sounds.values():
                waveform = torch.from_numpy(sound * np.float32(10.0 ** ((3.0 * passed - 3.0) / 20.0)))[None]
                codes.append(codec.encode(waveform, torch.tensor([waveform.shape[1]])).codes[0].numpy())
        uses = np.bincount(np.concatenate(codes), minlength=codec.size)
        shares = uses[uses > 0] / uses.sum()
        perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
        pesq, short, extended = np.mean(rows, axis=0)
        opinion = np.mean(ovrl, axis=0)
        cells = [f"{codec.frame_rate:.0f}", f"{pesq:.2f}", f"{short:.3f} ({np.mean(shuffled):.2f})", f"{extended:.3f}"]
        cells += [f"{opinion[0]:.2f} ({opinion[1]:.2f})", f"{100 * (uses > 0).mean():.0f} %, {int(uses.sum())} frames"]
        cells += [f"{perplexity:.0f}", f"{1.0 / _seconds_per_second(codec):.0f}"]
        yield f"| {_label(name)} | {' | '.join(cells)} |"


def _label(name: str) -> str:
    """Return how a table names a model: the folder of its training, or its own."""
    path = Path(name)
    return path.parent.name if path.name == "best" else path.name


def round_trip(codec: SpeechCodec, waveform: np.ndarray, shuffle: bool = False) -> np.ndarray:
    """Return (T,) float32 encoded and decoded; shuffled codes must not give the same sound."""
    lengths = torch.tensor([len(waveform)])
    codes = codec.encode(torch.from_numpy(waveform)[None], lengths)
    if shuffle:
        order = np.random.default_rng(_SEED).permutation(codes.codes.shape[1])
        codes = codes._replace(codes=codes.codes[:, order])
    return codec.decode(codes, lengths)[0].numpy()


def _chosen(pack: SpeechPack, limit: int, numbers: Sequence[int] | None = None) -> list[int]:
    """Return utterances of 1.5 to 16 s, drawn evenly over the corpora."""
    numbers = range(len(pack)) if numbers is None else numbers
    rng = np.random.default_rng(_SEED)
    order = [int(n) for n in rng.permutation(list(numbers)) if 1.5 <= pack.samples[n] / 16_000 <= 16.0]
    return sorted(order[:limit])


def _sound(pack: SpeechPack, number: int) -> np.ndarray:
    return pack.pcm(number).astype(np.float32) / 32768.0


def _with_noise(pack: SpeechPack, number: int, noise: str, snr_db: float) -> np.ndarray:
    """Return an utterance with noise of the test part at an SNR over the active speech."""
    sound = _sound(pack, number)
    rng = np.random.default_rng([_SEED, number, NOISES.index(noise)])
    if noise == "white":
        made = mono.colored_noise(len(sound), rng, 0.0)
    else:
        share = {"babble_share": float(noise == "babble"), "coloured_share": 0.0, "second_noise_share": 0.0}
        config = replace(NoisyConfig(burst_share=0.0), **share)
        made = NoisySpeech(pack, config).noise(rng, len(sound))
    power = float(np.mean(np.square(made, dtype=np.float64))) or 1.0
    gain = (mono.active_power(sound) / power / 10.0 ** (snr_db / 10.0)) ** 0.5
    return (sound + gain * made).astype(np.float32)


@torch.inference_mode()
def _hear(tokenizer: S3Tokenizer, sounds: Sequence[np.ndarray]) -> _Heard:
    tokens, words = [], []
    for sound in sounds:
        found: Tokens = tokenizer.encode(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
        tokens.append(found.tokens[0].numpy())
        words += tokenizer.words(found)
    return _Heard(tokens, words)


def _level_distance(tokenizer: S3Tokenizer, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the mean distance in levels of each token's numbers."""
    return tokenizer.network.quantizer.distance(torch.from_numpy(one), torch.from_numpy(other)).numpy()


def _seconds_per_second(codec: SpeechCodec) -> float:
    """Return the seconds that one thread takes to encode and decode a second of sound, the median of some stretches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sound = np.random.default_rng(0).standard_normal(int(_STRETCH_S * 16_000)).astype(np.float32) * 0.05
    times = []
    for _ in range(10):
        began = time.process_time()
        round_trip(codec, sound)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return float(np.median(times)) / _STRETCH_S
