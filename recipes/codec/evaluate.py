"""Evaluates tokenizers and codecs on speakers and noises of no training."""

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
SEEN_VOICE = "kathleen"  # is in training, with other prompts: left out
_SEED = 5
_STRETCH_S = 3.0  # duration of the input of the timing
_CODEBOOK_PASSES = 3  # over the test set at different levels, to count codes


@dataclass(frozen=True)
class _Tokenized:
    """Tokens of a set in one condition, and the text of each utterance's tokens."""

    tokens: list[np.ndarray]
    words: list[str]


def tokenizer_table(models: Sequence[str], test: Path, limit: int) -> Iterator[str]:
    """Yield the lines of a table: one row per condition, one column per model."""
    pack = SpeechPack(test, labelled=True)
    chosen = _chosen(pack, limit)
    references = [pack.words[number] for number in chosen]
    tokenizers = {_label(name): S3Tokenizer.load(name) for name in models}
    yield f"{len(chosen)} utterances of {len({pack.speakers[number] for number in chosen})} speakers"
    head = [f"{name}: WER % | ids changed % | level distance" for name in tokenizers]
    yield f"| condition | {' | '.join(head)} |"
    yield "|---" * (1 + 3 * len(tokenizers)) + "|"
    clean = {name: _tokenize(t, [_sound(pack, number) for number in chosen]) for name, t in tokenizers.items()}
    columns = [f"{100 * word_errors(references, result.words).rate:.1f} | - | -" for result in clean.values()]
    yield f"| clean | {' | '.join(columns)} |"
    for noise in NOISES:
        for snr_db in SNRS_DB:
            sounds = [_with_noise(pack, number, noise, snr_db) for number in chosen]
            columns = []
            for name, tokenizer in tokenizers.items():
                result = _tokenize(tokenizer, sounds)
                wer = word_errors(references, result.words).rate
                pairs = list(zip(clean[name].tokens, result.tokens, strict=True))
                changed = np.concatenate([a != b for a, b in pairs]).mean()
                distance = np.concatenate([_level_distance(tokenizer, a, b) for a, b in pairs]).mean()
                columns.append(f"{100 * wer:.1f} | {100 * changed:.0f} | {distance:.2f}")
            yield f"| {noise}, {snr_db} dB | {' | '.join(columns)} |"
    for name, tokenizer in tokenizers.items():
        tokens = np.concatenate(clean[name].tokens)
        probabilities = np.bincount(tokens, minlength=tokenizer.size) / len(tokens)
        entropy = float(-(probabilities[probabilities > 0] * np.log2(probabilities[probabilities > 0])).sum())
        order = np.random.default_rng(_SEED).permutation(len(chosen))
        shuffled = word_errors([references[index] for index in order], clean[name].words).rate
        used = f"{int((probabilities > 0).sum())} of {tokenizer.size} ids used"
        yield f"{name}: {entropy:.2f} bits per token, {used}, WER of other texts {100 * shuffled:.1f} %"


def codec_table(models: Sequence[str], packs: Path, limit: int) -> Iterator[str]:
    """Yield the lines of a table, one row per codec, for speakers in no training."""
    pack = SpeechPack(packs / "test")
    names = [number for number in range(len(pack)) if pack.speakers[number] != SEEN_VOICE]
    chosen = _chosen(pack, limit, names)
    sounds = {number: _sound(pack, number) * np.float32(to_level(_sound(pack, number))) for number in chosen}
    yield f"{len(chosen)} utterances of {len({pack.speakers[number] for number in chosen})} unseen speakers"
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
        probabilities = uses[uses > 0] / uses.sum()
        perplexity = float(np.exp(-(probabilities * np.log(probabilities)).sum()))
        pesq, short, extended = np.mean(rows, axis=0)
        mean_ovrl = np.mean(ovrl, axis=0)
        columns = [
            f"{codec.frame_rate:.0f}",
            f"{pesq:.2f}",
            f"{short:.3f} ({np.mean(shuffled):.2f})",
            f"{extended:.3f}",
        ]
        columns += [
            f"{mean_ovrl[0]:.2f} ({mean_ovrl[1]:.2f})",
            f"{100 * (uses > 0).mean():.0f} %, {int(uses.sum())} frames",
        ]
        columns += [f"{perplexity:.0f}", f"{1.0 / _seconds_per_second(codec):.0f}"]
        yield f"| {_label(name)} | {' | '.join(columns)} |"


def _label(name: str) -> str:
    """Return a model's name in tables: the folder of its training, or its own."""
    path = Path(name)
    return path.parent.name if path.name == "best" else path.name


def round_trip(codec: SpeechCodec, waveform: np.ndarray, shuffle: bool = False) -> np.ndarray:
    """Return (T,) float32 encoded and decoded; shuffled codes are a control that must give another sound."""
    lengths = torch.tensor([len(waveform)])
    codes = codec.encode(torch.from_numpy(waveform)[None], lengths)
    if shuffle:
        order = np.random.default_rng(_SEED).permutation(codes.codes.shape[1])
        codes = codes._replace(codes=codes.codes[:, order])
    return codec.decode(codes, lengths)[0].numpy()


def _chosen(pack: SpeechPack, limit: int, numbers: Sequence[int] | None = None) -> list[int]:
    """Return utterances of 1.5 to 16 s, drawn uniformly."""
    numbers = range(len(pack)) if numbers is None else numbers
    rng = np.random.default_rng(_SEED)
    order = [int(n) for n in rng.permutation(list(numbers)) if 1.5 <= pack.samples[n] / 16_000 <= 16.0]
    return sorted(order[:limit])


def _sound(pack: SpeechPack, number: int) -> np.ndarray:
    return pack.pcm(number).astype(np.float32) / 32768.0


def _with_noise(pack: SpeechPack, number: int, noise: str, snr_db: float) -> np.ndarray:
    """Return an utterance with noise of the test part at an SNR relative to the active speech."""
    sound = _sound(pack, number)
    rng = np.random.default_rng([_SEED, number, NOISES.index(noise)])
    if noise == "white":
        noise_waveform = mono.colored_noise(len(sound), rng, 0.0)
    else:
        fractions = {"babble_prob": float(noise == "babble"), "colored_prob": 0.0, "second_noise_prob": 0.0}
        config = replace(NoisyConfig(burst_prob=0.0), **fractions)
        noise_waveform = NoisySpeech(pack, config).noise(rng, len(sound))
    power = float(np.mean(np.square(noise_waveform, dtype=np.float64))) or 1.0
    gain = (mono.active_power(sound) / power / 10.0 ** (snr_db / 10.0)) ** 0.5
    return (sound + gain * noise_waveform).astype(np.float32)


@torch.inference_mode()
def _tokenize(tokenizer: S3Tokenizer, sounds: Sequence[np.ndarray]) -> _Tokenized:
    tokens, words = [], []
    for sound in sounds:
        encoded: Tokens = tokenizer.encode(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
        tokens.append(encoded.tokens[0].numpy())
        words += tokenizer.words(encoded)
    return _Tokenized(tokens, words)


def _level_distance(tokenizer: S3Tokenizer, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the mean distance of each token's dimensions, in levels."""
    return tokenizer.network.quantizer.distance(torch.from_numpy(one), torch.from_numpy(other)).numpy()


def _seconds_per_second(codec: SpeechCodec) -> float:
    """Return the CPU seconds of one thread to encode and decode a second of sound, the median of ten runs."""
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
