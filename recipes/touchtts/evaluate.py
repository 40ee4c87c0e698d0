"""Intelligibility of each step from the recording to the full system, and dependence on the text."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from sentence_id import SENTENCES, SentenceIdentifier

from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.codec.codec import SpeechCodec
from audio_llm.codec.mel import log_mel
from audio_llm.metrics import character_error_rate
from audio_llm.sound_metrics import dnsmos
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.speech import CHUNK, TouchTTS
from audio_llm.tts import synthesize

RECOGNIZER = "ctc-small"
PEER = "flite:slt"  # another synthesizer, for comparison


@dataclass(frozen=True)
class HeldOutSentence:
    """One held-out sentence.

    Attributes:
        row: Its row in the pack.
        text: Original text.
        words: Normalized text.
    """

    row: int
    text: str
    words: str


def held_out(pack: UtterancePack, voice: str, count: int) -> tuple[list[HeldOutSentence], SentenceIdentifier]:
    """Return sentences of a voice, each text once, in pocketsphinx's vocabulary, and the identification test."""
    rows = [row for row, name in enumerate(pack.voices) if name == voice and pack.samples[row]]
    first = {DEFAULT_NORMALIZER(pack.texts[row]): row for row in reversed(rows)}
    sentence_id = SentenceIdentifier(list(first))
    usable = sorted(words for words in first if sentence_id.usable(words))
    chosen = np.random.default_rng(0).permutation(usable)[:count]
    return [HeldOutSentence(first[words], pack.texts[first[words]], words) for words in map(str, chosen)], sentence_id


def systems(
    speech: TouchTTS, pack: UtterancePack, voice: str, sentences: Sequence[HeldOutSentence]
) -> dict[str, Callable[[int], Any]]:
    """Return the synthesizers of a sentence by its number, by name of the system, the recording first."""
    codec, reference = SpeechCodec.load("codec-small"), speech.voice(voice)

    def real(number: int) -> np.ndarray:
        return pack.pcm(sentences[number].row).astype(np.float32) / 32768.0

    def coded(number: int) -> np.ndarray:
        waveform = torch.from_numpy(real(number))[None]
        lengths = torch.tensor([waveform.shape[1]])
        return codec.decode(codec.encode(waveform, lengths), lengths)[0].numpy()

    @torch.inference_mode()
    def vocoded(number: int) -> np.ndarray:
        return speech.model.vocoder(log_mel(torch.from_numpy(real(number))[None]))[0].numpy()

    def tokens(number: int) -> list[int]:
        return pack.tokens(sentences[number].row).tolist()

    def swapped(number: int) -> np.ndarray:
        return speech.sound(tokens((number + 1) % len(sentences)), reference)

    def other_text(number: int) -> np.ndarray:
        return speech.synthesize(sentences[(number + 1) % len(sentences)].text, voice).waveform

    return {
        "recording": real,
        "codec-small": coded,
        "vocoder": vocoded,
        "flow of true tokens": lambda number: speech.sound(tokens(number), reference),
        "the same in chunks": lambda number: speech.sound(tokens(number), reference, chunk=CHUNK),
        "full": lambda number: speech.synthesize(sentences[number].text, voice).waveform,
        "full in chunks": lambda number: speech.synthesize(sentences[number].text, voice, chunk=CHUNK).waveform,
        PEER: lambda number: synthesize(sentences[number].text, PEER),
        "flow of another's tokens": swapped,
        "full, another text": other_text,
    }


def ladder(
    speech: TouchTTS,
    pack: UtterancePack,
    voice: str,
    count: int,
    output: Path,
    fingerprint: str,
    names: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the table of the intelligibility of each system; earlier measurements of the same model are reused."""
    sentences, sentence_id = held_out(pack, voice, count)
    recognizer = CtcRecognizer.load(RECOGNIZER)
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
    known = {(row["system"], row["words"]): row for row in rows if row["made_by"] == fingerprint}
    synthesizers = systems(speech, pack, voice, sentences)
    yield f"{len(sentences)} sentences; one of {SENTENCES} identified by pocketsphinx; characters by {RECOGNIZER}"
    yield "| system | identified | character error rate, % | DNSMOS OVRL | seconds |"
    yield "|---|---|---|---|---|"
    with output.open("a", encoding="utf-8") as file:
        for name, make in synthesizers.items():
            if names and name not in names:
                continue
            measured = []
            for number, sentence in enumerate(sentences):
                row = known.get((name, sentence.words))
                if row is None:
                    row = {"system": name, "words": sentence.words, "made_by": fingerprint}
                    row |= _measured(make(number), sentence, number, sentence_id, recognizer)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                measured.append(row)
            yield _ladder_row(name, measured)


def _measured(
    waveform: np.ndarray,
    sentence: HeldOutSentence,
    number: int,
    sentence_id: SentenceIdentifier,
    recognizer: CtcRecognizer,
) -> dict[str, Any]:
    waveform = np.pad(waveform, 1600)  # recognizers need some silence around speech
    text = DEFAULT_NORMALIZER(recognizer.recognize(waveform, 1).best)
    return {
        "picked": sentence_id.identifies(waveform, sentence.words, number),
        "text": text,
        "ovrl": dnsmos(waveform).ovrl,
        "seconds": waveform.size / 16_000 - 0.2,
    }


def _ladder_row(name: str, rows: Sequence[dict[str, Any]]) -> str:
    picked = sum(row["picked"] for row in rows)
    rate = character_error_rate([row["words"] for row in rows], [row["text"] for row in rows])
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    ovrl = sum(row["ovrl"] for row in rows) / len(rows)
    return f"| {name} | {picked} of {len(rows)} | {100 * rate:.1f} | {ovrl:.2f} | {seconds:.2f} |"


def text_matters(speech: TouchTTS, pack: UtterancePack, voice: str, count: int) -> Iterator[str]:
    """Yield the log-probability of true tokens under the true text, and under another one."""
    sentences, _ = held_out(pack, voice, count)
    lm, scores = speech.model.lm, []
    for number, sentence in enumerate(sentences):
        tokens = torch.from_numpy(pack.tokens(sentence.row).astype(np.int64))
        texts = [pack.normalized[sentences[index % len(sentences)].row] for index in (number, number + 1)]
        scores.append([lm.score_speech(text, voice, tokens) / (len(tokens) + 1) for text in texts])
    true, other = np.array(scores).T
    yield f"nats per token: true text {-true.mean():.3f}, another text {-other.mean():.3f}"
    yield f"the true text is likelier for {int((true > other).sum())} of {len(true)}"


def transcription(speech: TouchTTS, pack: UtterancePack, count: int) -> Iterator[str]:
    """Yield error rates of transcription from tokens, and from continuous features."""
    yield "| voice | utterances | CER, tokens | CER, continuous |"
    yield "|---|---|---|---|"
    for voice in sorted(set(pack.voices)):
        rows = [row for row, name in enumerate(pack.voices) if name == voice and pack.samples[row]]
        rows = np.random.default_rng(0).permutation(rows)[:count].tolist()
        words = [DEFAULT_NORMALIZER(pack.texts[row]) for row in rows]
        texts: dict[bool, list[str]] = {False: [], True: []} if speech.model.lm.config.states else {False: []}
        for row in rows:
            tokens = torch.from_numpy(pack.tokens(row).astype(np.int64))
            states = torch.from_numpy(pack.states(row)).float()
            for is_continuous in texts:
                written = speech.model.lm.transcribe(tokens, states if is_continuous else None)
                texts[is_continuous].append(DEFAULT_NORMALIZER(speech.model.lm.text_tokens.decode(written[0][0])))
        rates = [f"{100 * character_error_rate(words, hypotheses):.1f} %" for hypotheses in texts.values()]
        yield f"| {voice} | {len(rows)} | {' | '.join([*rates, 'not available'][:2])} |"


def cost(speech: TouchTTS, voice: str, seconds: Sequence[float] = (2.0, 10.0, 30.0)) -> Iterator[str]:
    """Yield the time of a chunk of 0.4 s at several positions of a long utterance, and the time to the first sound."""
    from audio_llm.touchtts.flow import FlowRun

    reference, model = speech.voice(voice), speech.model
    rng = torch.Generator().manual_seed(0)
    size = int(max(seconds) * 25) + 3 * CHUNK
    tokens = torch.randint(model.flow.config.speech, (1, size), generator=rng)
    run, state, spent = FlowRun(model.flow, reference.embedding, 0, CHUNK), model.vocoder.first_state(), []
    for first in range(0, size - CHUNK, CHUNK):
        begin = time.perf_counter()
        mel = run.next_frames(tokens[:, first : first + CHUNK], tokens[:, first + CHUNK :][:, :3])
        _, state = model.vocoder.step(mel, state)
        spent.append(time.perf_counter() - begin)
    for second in seconds:
        index = int(second * 25 / CHUNK)
        near = spent[max(1, index - 4) : index + 4]
        yield f"a chunk at {second:g} s: {1000 * float(np.median(near)):.0f} ms for {40 * CHUNK} ms of sound"
    for text in ("Good morning, everyone.", "The quick brown fox jumps over the lazy dog, and then it goes to sleep."):
        begin = time.perf_counter()
        first_s, sound = None, 0
        for chunk in speech.stream(text, voice):
            first_s = first_s or time.perf_counter() - begin
            sound += chunk.waveform.size
        whole_s = time.perf_counter() - begin
        yield f"{text!r}: first sound after {first_s:.2f} s, real-time factor {whole_s * 16_000 / sound:.2f}"
    logging.info("%d threads", torch.get_num_threads())
