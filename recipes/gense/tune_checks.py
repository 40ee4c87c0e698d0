"""Tunes the limits of the quality checks on validation speech, and tests the checks with wrong inputs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from evaluate import MIXES, mixes, sound_figures, token_errors
from measure import Pair

from audio_llm.codec.codec import Codes, SpeechCodec, to_level
from audio_llm.gense.checks import Evidence, Limits, rejection_reasons
from audio_llm.gense.chunks import ChunkReport, Policy
from audio_llm.gense.enhance import Enhancer
from audio_llm.gense.generate import Generated, Resynthesizer
from audio_llm.gense.mask_model import MaskNetwork
from audio_llm.gense.measures import snr_db
from audio_llm.gense.models import GenseModel
from audio_llm.gense.network import Chain
from audio_llm.lm.sampling import GREEDY, MEDIAN, Sampling
from audio_llm.quantizers.fsq import FSQ
from audio_llm.simulation.noisy import NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.tokenizer.s3 import S3Tokenizer

RATE = 16_000  # Hz
NOISY = replace(MIXES, seconds=6.0, snr_db=(-5.0, 20.0), room_prob=0.4)
CLEAN = replace(NOISY, clean_prob=1.0, room_prob=0.0)
NOISE_ONLY = replace(NOISY, silent_prob=1.0, room_prob=0.0)
_LOW_DB = 10.0  # at or below it hardly any chunk may be bypassed
_PASS_RATE = 0.95  # fraction of the good segments that each limit accepts
_BYPASSED = 0.02  # fraction of the segments at low ratios that are bypassed
_NEAREST = 0.9  # of the smallest distance of other words: the largest accepted distance
_THRESHOLDS_DB = (20.0, 15.0, 10.0, 5.0, 0.0)  # candidates for the mode `balanced`
_FEWEST = 10  # segments that a threshold needs
_SEED = 43
_OF_SOUND = ("tone_db", "pitch_octaves", "invented", "lost")
_BETTER = {"pesq_wb": 1, "stoi": 1, "estoi": 1, "si_sdr_db": 1, "sig": 1, "bak": 1, "ovrl": 1, "token_distance": -1}


class Arm(NamedTuple):
    """A candidate configuration.

    Attributes:
        acoustic: Acoustic codes in the prompt of S2S, `noisy` or `masked`.
        tokens: Decoding of N2S's tokens.
        codes: Decoding of S2S's codes.
        copy_weight: Weight of the noisy speech's tokens in N2S's probabilities, and of the mask network's likewise.
    """

    acoustic: str
    tokens: Sampling
    codes: Sampling
    copy_weight: float = 0.0

    def generator(self, model: GenseModel) -> Resynthesizer:
        """Return a resynthesizer with this configuration."""
        return Resynthesizer(model, self.tokens, self.codes, Chain(acoustic=self.acoustic), self.copy_weight)


_SAMPLED = Sampling(0.5, 50, 0.95)
ARMS = {
    "noisy-heard-sampled": Arm("noisy", MEDIAN, _SAMPLED, 0.25),
    "masked-heard-sampled": Arm("masked", MEDIAN, _SAMPLED, 0.25),
    "masked-heard-median": Arm("masked", MEDIAN, MEDIAN, 0.25),
    "masked-median-sampled": Arm("masked", MEDIAN, _SAMPLED),
    "masked-greedy-sampled": Arm("masked", GREEDY, _SAMPLED),
}


def arms(model: GenseModel) -> dict[str, Arm]:
    """Return the candidates for a model: codes have a median only with a scalar quantizer."""
    scalar = isinstance(model.parts.codec.network.quantizer, FSQ)
    return {name: arm for name, arm in ARMS.items() if scalar or arm.codes != MEDIAN}


@dataclass(frozen=True)
class Tuned:
    """Settings tuned on validation speech.

    Attributes:
        chain: Parts of the prompt of S2S.
        sampling: Decoding of S2S's codes.
        semantic_sampling: Decoding of N2S's tokens.
        copy_weight: See `Arm`.
        limits: Limits of the quality checks.
        balanced_below_db: Threshold of the mode `balanced`; None: below no threshold is accepted resynthesized speech
            as good as the mask network's output on every measure.
    """

    chain: Chain
    sampling: Sampling
    semantic_sampling: Sampling
    copy_weight: float
    limits: Limits
    balanced_below_db: float | None


def generate_all(
    generator: Resynthesizer, network: MaskNetwork, pack: SpeechPack, count: int, seed: int, output: Path
) -> list[dict[str, Any]]:
    """Resynthesize noisy segments; return a row each: evidence, figures, and the distance of the words before.

    Args:
        generator: The resynthesizer.
        network: The mask network.
        pack: Speech and noise.
        count: Number of segments.
        seed: Seed of the first segment.
        output: Stores the rows of these models; rows that exist are not computed again.
    """
    speech, tokenizer = NoisySpeech(pack, NOISY), generator.model.parts.tokenizer
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.exists() else []
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        for number in range(len(rows), count):
            pair = speech.pair(seed + number)
            masked = masked_sound(network, pair.noisy)
            generated = generator.generate(pair.noisy, masked, number)
            row: dict[str, Any] = {
                "snr_db": pair.snr_db,
                "tokens": generated.tokens.tolist(),
                "own": asdict(generated.evidence),
            }
            if rows:
                words = np.array(rows[-1]["tokens"])
                row["other"] = min(_words_apart(tokenizer, sound, words) for sound in (pair.noisy, masked))
            for name, sound in (("noisy", pair.noisy), ("mask", masked), ("spoken", generated.waveform)):
                figures = sound_figures(Pair(str(number), pair.noisy, pair.clean, ""), sound)
                row[name] = figures | {"token_distance": token_errors(tokenizer, pair.clean, sound)[0]}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            logging.info("%d of %d segments", number + 1, count)
    return rows[:count]


def best_arm(tried: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return the arm, from rows of `generate_all`, whose tokens are nearest to those of the clean speech."""
    for name, rows in tried.items():
        logging.info("%s: %s", name, {k: round(_mean(rows, "spoken", k), 3) for k in _BETTER})
    return min(tried, key=lambda name: _mean(tried[name], "spoken", "token_distance"))


def tune(best: Arm, rows: Sequence[dict[str, Any]], clean_db: Sequence[float]) -> Tuned:
    """Return the tuned settings.

    A segment is good if its tokens are at least as near to the clean speech's as the noisy ones. Each limit accepts 95
    of 100 good segments and is never wider than the default, since the rows do not show how wrong words and voices
    differ. With fewer than 10 good segments the defaults stay. Words may differ from the input's by at most 0.9 of the
    distance of the nearest words of other segments. The ratio from which the input is bypassed accepts 95 of 100 clean
    segments, is at most the default, and exceeds that of 98 of 100 segments at 10 dB or less.

    Args:
        best: The arm.
        rows: Its rows of `generate_all`.
        clean_db: Estimated signal-to-noise ratios of clean speech, in dB.
    """
    everything = [row["own"] for row in rows]
    good = [row["own"] for row in rows if row["spoken"]["token_distance"] <= row["noisy"]["token_distance"]]
    limits = asdict(Limits())
    if len(good) < _FEWEST:
        logging.warning("only %d of %d segments are good: the defaults stay", len(good), len(rows))
    else:
        for name in ("level_distance", "input_distance", "longest_run", *_OF_SOUND):
            values = [evidence[name] for evidence in good if np.isfinite(evidence[name])]
            limits[name] = float(np.quantile(values, _PASS_RATE, method="higher"))
            limits[name] = min(limits[name], getattr(Limits(), name))
        surest = float(np.quantile([evidence["confidence"] for evidence in good], 1.0 - _PASS_RATE))
        limits["least_confidence"] = max(limits["least_confidence"], surest)
    nearest = min(row["other"] for row in rows[1:])
    limits["input_distance"] = min(limits["input_distance"], _NEAREST * nearest)
    low = [row["own"]["snr_db"] for row in rows if row["snr_db"] <= _LOW_DB]
    clean_limit = min(float(np.quantile(clean_db, 1.0 - _PASS_RATE)), Limits().good_db)
    limits["good_db"] = max(float(np.quantile(low, 1.0 - _BYPASSED)), _LOW_DB, clean_limit)
    limits = {name: round(value, 3) for name, value in limits.items()}
    tuned_limits = Limits(**limits)
    passing = (
        sum(not rejection_reasons(Evidence(**evidence), tuned_limits) for evidence in evidences)
        for evidences in (everything, good)
    )
    logging.info(
        "%d of %d segments are accepted, %d of %d good ones", next(passing), len(rows), next(passing), len(good)
    )
    fraction = float(np.mean(np.array(clean_db) >= tuned_limits.good_db))
    logging.info("%.0f %% of clean segments are bypassed", 100.0 * fraction)
    drawing = (best.codes, best.tokens, best.copy_weight)
    return Tuned(Chain(acoustic=best.acoustic), *drawing, tuned_limits, _threshold(rows, tuned_limits))


def _mean(rows: Sequence[dict[str, Any]], system: str, name: str) -> float:
    return float(np.mean([row[system][name] for row in rows]))


def _threshold(rows: Sequence[dict[str, Any]], limits: Limits) -> float | None:
    """Return the highest threshold below which accepted segments are no worse than the mask network's on average."""
    passing = [
        row
        for row in rows
        if row["own"]["snr_db"] < limits.good_db and not rejection_reasons(Evidence(**row["own"]), limits)
    ]
    for below_db in _THRESHOLDS_DB:
        below = [row for row in passing if row["own"]["snr_db"] < below_db]
        gains = {
            name: sign * (_mean(below, "spoken", name) - _mean(below, "mask", name))
            for name, sign in _BETTER.items()
            if len(below) >= _FEWEST
        }
        logging.info("below %g dB, %d segments: %s", below_db, len(below), {k: round(v, 3) for k, v in gains.items()})
        if gains and min(gains.values()) >= 0.0:
            return below_db
    return None


def _words_apart(tokenizer: S3Tokenizer, waveform: np.ndarray, words: np.ndarray) -> float:
    input_tokens = tokenizer.encode(*_levelled(waveform)).tokens[0]
    count = min(len(input_tokens), len(words))
    return float(tokenizer.network.quantizer.distance(input_tokens[:count], torch.from_numpy(words[:count])).mean())


def _levelled(waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a waveform (1, T) at the tokenizer's level, and its length."""
    return torch.from_numpy(waveform * np.float32(to_level(waveform)))[None], torch.tensor([len(waveform)])


def clean_ratios_db(network: MaskNetwork, pack: SpeechPack, count: int, seed: int) -> list[float]:
    """Return the estimated signal-to-noise ratios of clean segments, in dB."""
    speech = NoisySpeech(pack, CLEAN)
    sounds = [speech.pair(seed + number).noisy for number in range(count)]
    return [snr_db(sound, masked_sound(network, sound)) for sound in sounds]


def attack(model: GenseModel, network: MaskNetwork, test: Path, count: int) -> Iterator[str]:
    """Yield the lines of a table: the actions on inputs that must not be resynthesized, in mode `generative`.

    Args:
        model: GenSE.
        network: The mask network.
        test: Pack of other speakers and noises.
        count: Utterances of each kind.
    """
    plain, forced, voice = Resynthesizer(model), _ForcedWords(model), _OtherVoice(model.parts.codec.network)
    imitating = Resynthesizer(replace(model, parts=replace(model.parts, codec=voice)))
    pack = SpeechPack(test)
    speakers = dict(zip(pack.ids, pack.speakers, strict=True))
    checked = Policy("generative", limits=model.limits)
    free = Policy("generative", checks=False, limits=replace(model.limits, good_db=1000.0))
    kinds = (
        ("noisy speech", NOISY, plain, checked),
        ("another's words forced in", NOISY, forced, checked),
        ("another's voice in the prompt", NOISY, imitating, checked),
        ("clean speech", CLEAN, plain, checked),
        ("noise", NOISE_ONLY, plain, checked),
        ("noise, without checks", NOISE_ONLY, plain, free),
    )
    yield "| input | chunks | generated | mask | bypass | silent |"
    yield "|---" * 6 + "|"
    for kind, config, generator, policy in kinds:
        pairs = mixes(test, count, config, _SEED)
        chunks: list[ChunkReport] = []
        for number, pair in enumerate(pairs):
            other_speakers = [p for p in pairs[:number][::-1] + pairs[::-1] if speakers[p.id] != speakers[pair.id]]
            other = other_speakers[0] if other_speakers else pairs[number - 1]
            forced.use_words(other.clean)
            voice.imitate(other.clean)
            for _ in Enhancer(network, generator, policy).stream([pair.noisy[:, None]], RATE, report=chunks.append):
                pass
        actions = Counter(chunk.action for chunk in chunks)
        counts = [str(actions[name]) for name in ("generated", "mask", "bypass", "silent")]
        yield f"| {kind} | {len(chunks)} | {' | '.join(counts)} |"


class _ForcedWords(Resynthesizer):
    """Generates given words."""

    words = np.zeros(1, np.int64)

    def use_words(self, waveform: np.ndarray) -> None:
        """Set the words to those of (T,) float32 at 16 kHz."""
        self.words = self.model.parts.tokenizer.encode(*_levelled(waveform)).tokens[0].numpy()

    def generate(self, noisy: np.ndarray, *args: Any, **more: Any) -> Generated:
        """Resynthesize as `Resynthesizer.generate`, with the given words."""
        count = self.model.parts.tokenizer.encode(*_levelled(noisy)).tokens.shape[1]
        more["force"] = np.resize(self.words, count)
        return super().generate(noisy, *args, **more)


class _OtherVoice(SpeechCodec):
    """Encodes every input as the codes of another voice."""

    def imitate(self, waveform: np.ndarray) -> None:
        """Set the voice to that of (T,) float32 at 16 kHz."""
        self._codes = super().encode(*_levelled(waveform)).codes[0]

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> Codes:
        """Return that voice's codes (1, N), as many as the waveform has."""
        count = int(self.network.code_lengths(lengths)[0])
        return Codes(self._codes.repeat(-(-count // len(self._codes)))[None, :count], torch.tensor([count]))


def masked_sound(network: MaskNetwork, waveform: np.ndarray) -> np.ndarray:
    """Return the mask network's output (T,) float32 at 16 kHz."""
    with torch.inference_mode():
        sound: np.ndarray = network(torch.from_numpy(waveform)[None])[0].numpy()
    return sound
