from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audio_llm.asr.base import Capabilities
from audio_llm.dlm.corpus import Sentence
from audio_llm.dlm.generate import (
    GenerationConfig,
    generate,
    make_shard,
    plan_recordings,
    plan_speech,
    read_pairs,
)
from audio_llm.dlm.pairs import make_sound
from audio_llm.errors import AudioLLMError, DataError
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.simulation.augment import CLEAN, Augmentation

PROJECT = Path(__file__).parents[2]
SENTENCES = [Sentence(f"book:{i:05d}", f"Sentence number {i} of four.", f"sentence number {i}") for i in range(40)]


class FakeRecognizer:
    """Returns the number of samples as its text."""

    name = "fake"
    version = "fake-1"
    capabilities = Capabilities(True, False, False, False)

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        return NBest(id, (Hypothesis(f"heard {waveform.size}", -1.0), Hypothesis(f"Heard {waveform.size}!", -2.0)))


def recordings(tmp_path: Path, count: int) -> list[tuple[str, str, str]]:
    import soundfile

    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, 1600 * (i + 1)).astype(np.float32), 16_000)
        rows.append((f"r{i}", str(path), f"Text {i}."))
    return rows


def test_plan_is_a_pure_function_and_every_setting_changes_it() -> None:
    config = GenerationConfig()
    plan = plan_speech(SENTENCES, config)
    assert plan_speech(SENTENCES, config) == plan
    changes = [
        replace(config, seed=1),
        replace(config, nbest=5),
        replace(config, augmentation=CLEAN),
        replace(config, voices=("flite:slt",)),
    ]
    prints = {plan.fingerprint, *(plan_speech(SENTENCES, changed).fingerprint for changed in changes)}
    prints.add(plan_speech(SENTENCES[1:], config).fingerprint)
    prints.add(plan_speech(SENTENCES, config, [np.zeros(3, np.float32)]).fingerprint)
    assert len(prints) == len(changes) + 3


def test_every_voice_and_every_sentence_is_used_once() -> None:
    plan = plan_speech(SENTENCES, GenerationConfig(shard_size=7))
    items = [item for shard in plan.shards for item in shard]
    assert sorted(item.text_id for item in items) == [s.id for s in SENTENCES]
    assert {item.voice for item in items} == set(GenerationConfig().voices)


def test_shard_holds_normalized_distinct_hypotheses_and_the_recognizers_version(tmp_path: Path) -> None:
    plan = plan_recordings(recordings(tmp_path, 2), GenerationConfig())
    data, failed = make_shard(plan, 0, FakeRecognizer())
    assert failed == 0
    assert data == make_shard(plan, 0, FakeRecognizer())[0]
    rows = [json.loads(line) for line in gzip.decompress(data).decode().splitlines()]
    assert rows[1]["hypotheses"] == [{"text": "heard three thousand two hundred", "score": -1.0}]
    assert {row["asr"] for row in rows} == {"fake-1"}
    assert [row["reference"] for row in rows] == ["text zero", "text one"]


def test_too_many_failures_stop_the_generation(tmp_path: Path) -> None:
    rows = [(f"r{i}", str(tmp_path / "missing.wav"), "text") for i in range(5)]
    with pytest.raises(AudioLLMError, match="5 of 5 items failed"):
        make_shard(plan_recordings(rows, GenerationConfig()), 0, FakeRecognizer())


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = GenerationConfig(shard_size=2)
    generate(plan_recordings([], config), tmp_path / "pairs")
    with pytest.raises(DataError, match="another plan"):
        generate(plan_recordings([], replace(config, seed=5)), tmp_path / "pairs")


def test_no_more_shards_than_requested(tmp_path: Path) -> None:
    plan = plan_recordings(recordings(tmp_path, 1), GenerationConfig())
    report = generate(plan, tmp_path / "pairs", max_shards=0)
    assert (report.generated, report.existing, report.remaining) == (0, 0, 0)
    assert not list((tmp_path / "pairs").glob("shard-*"))


def test_changed_shard_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.jsonl.gz").write_bytes(b"x")
    (tmp_path / "shard-00000.ok").write_text('{"sha256": "0"}')
    with pytest.raises(DataError, match="checksum"):
        list(read_pairs(tmp_path))


_GENERATE = """
import sys
from pathlib import Path
from audio_llm.dlm.generate import GenerationConfig, generate, plan_recordings
folder = Path(sys.argv[1])
rows = [(p.stem, str(p), p.stem) for p in sorted(Path(sys.argv[2]).glob("kathleen*.ogg"))]
generate(plan_recordings(rows, GenerationConfig(shard_size=1, nbest=5)), folder, workers=1)
"""


@pytest.mark.slow
def test_killed_and_resumed_generation_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = str(PROJECT / "samples" / "speech")

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _GENERATE, str(folder), samples]
        return subprocess.Popen(command, cwd=PROJECT, start_new_session=True)

    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("*.ok")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name for path in (tmp_path / "killed").glob("*.ok")}
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("shard-*")}
    assert 0 < len(done) < len(whole) / 2
    assert start(tmp_path / "killed").wait() == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("shard-*")} == whole
    assert len(list(read_pairs(tmp_path / "killed"))) == 5


def test_augmentation_draws_follow_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, float | str]] = []
    augmentation = Augmentation(noisy_prob=0.4, room_prob=0.15, snr_db=(22.0, 45.0))
    tone = np.sin(np.arange(1600) / 10).astype(np.float32)
    monkeypatch.setattr("audio_llm.tts.synthesize", lambda text, voice, speed=1.0: tone)
    for item in (i for shard in plan_speech(SENTENCES * 10, GenerationConfig()).shards for i in shard):
        fresh = replace(item, seed=item.seed + len(drawn))
        drawn.append(make_sound(fresh, augmentation).settings)
    count = len(drawn)
    noisy = [float(h["snr_db"]) for h in drawn if "snr_db" in h]
    rooms = sum("rt60_s" in h for h in drawn)
    assert abs(len(noisy) - 0.4 * count) < 3 * (count * 0.4 * 0.6) ** 0.5
    assert abs(rooms - 0.15 * count) < 3 * (count * 0.15 * 0.85) ** 0.5
    assert min(noisy) >= 22.0
    assert max(noisy) <= 45.0
