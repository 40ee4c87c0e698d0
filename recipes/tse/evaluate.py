"""Evaluation of a model on test scenes: one line of measures per scene, written immediately."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm.errors import UsageError
from audio_llm.simulation.heads import level_difference_db, time_difference_s
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import Scene, make_scene
from audio_llm.sound_metrics import si_sdr_db
from audio_llm.tse.enrollment import EnrollmentOutput
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE, analyze, synthesize
from audio_llm.tse.losses import best_order
from audio_llm.tse.models import TargetSpeakerModel
from audio_llm.tse.selector import weigh
from audio_llm.tse.speaker import SpeakerEncoder, embed
from audio_llm.tse.train_separator import slots, talkers_by_stream

SEED = 7  # of the test scenes
_CUE_S = 0.25  # length of a segment in which cues are measured
_CUE_LEAST = 1e-3  # smallest RMS of the target in a segment
_FLOOR = 1e-12


@dataclass(frozen=True)
class Evaluator:
    """The evaluated model, and the teacher that identifies speakers from clean speech.

    Attributes:
        model: The evaluated model.
        teacher: Speaker encoder whose vectors of clean speech are the reference.
        speaker_vectors: (V, 256), the teacher's vector of every voice of the sources.
    """

    model: TargetSpeakerModel
    teacher: SpeakerEncoder
    speaker_vectors: Tensor


def evaluate(
    measures: Callable[[Scene], dict[str, Any]],
    model: str,
    sources: SceneSources,
    config: SceneConfig,
    count: int,
    path: Path,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Append the measures of the scenes that are missing in the file.

    Args:
        measures: Returns the measures of a scene.
        model: Fingerprint of the model.
        sources: Sources of the test part.
        config: How scenes are drawn.
        count: Number of scenes.
        path: File of JSON lines.
        part: Index of this process and the number of processes.

    Raises:
        UsageError: The file contains measures of another model.
    """
    rows = read_rows(path)
    if any(row["model"] != model for row in rows):
        raise UsageError("these are measures of another model", path=path, remedy="remove them, or measure elsewhere")
    done = {row["index"] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for index in range(part[0], count, part[1]):
            if index in done:
                continue
            scene = make_scene(sources, config, SEED, index)
            file.write(
                json.dumps({"model": model, "index": index, **describe(sources, scene), **measures(scene)}) + "\n"
            )
            file.flush()
            if index % 50 == part[0]:
                logging.info("scene %d of %d", index, count)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, none if it does not exist; a last row that is incomplete is removed from it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def describe(sources: SceneSources, scene: Scene) -> dict[str, Any]:
    """Return the properties of a scene."""
    plan, talkers = scene.plan, scene.plan.talkers
    voices = [sources.voices[talker.voice] for talker in talkers]
    turns = [(talker.azimuth - talkers[0].azimuth + 180.0) % 360.0 - 180.0 for talker in talkers[1:]]
    shared = [min(t.ends_s, talkers[0].ends_s) - max(t.starts_s, talkers[0].starts_s) for t in talkers[1:]]
    return {
        "head": sources.heads[plan.head].name,
        "talkers": len(talkers),
        "azimuth": talkers[0].azimuth,
        "nearest_deg": min(abs(turn) for turn in turns),
        "gender": voices[0].gender,
        "other_genders": "".join(sorted({voice.gender for voice in voices[1:]})),
        "same_corpus": any(voice.corpus == voices[0].corpus for voice in voices[1:]),
        "moving": sum(talker.moving for talker in talkers),
        "speed_deg_s": scene.speeds_deg_s[0],
        "fastest_deg_s": max(scene.speeds_deg_s),
        "overlap_s": max(0.0, *shared),
        "snr_db": plan.snr_db,
        "look_snr_db": plan.enrollment_snr_db,
        "enrollment_error_deg": plan.enrollment[0].azimuth,
        "look_people": len(plan.enrollment),
        "look_behind": any(abs(talker.azimuth - 180.0) < 18.0 for talker in plan.enrollment[1:]),
        "absent": plan.absent,
        "one_recording": plan.one_recording,
    }


@torch.inference_mode()
def measure(evaluator: Evaluator, scene: Scene) -> dict[str, Any]:
    """Return the measures of one scene, in dB if their name ends in `_db`; ratios are means over both ears."""
    mixture = _whole(scene.mixture)
    target = torch.from_numpy(scene.target)[None, :, : mixture.shape[-1]]
    network = evaluator.model.network
    streams = network.extractor(mixture)
    stream_encoding = network.selector.encode_streams(streams)
    noisy = evaluator.model.enrollment_encoder.encode(_whole(scene.enrollment))
    vectors = _vectors(evaluator, scene, noisy)

    def extract_with(name: str) -> Tensor:
        return weigh(streams, network.selector.select(stream_encoding, vectors[name])[0])

    sounds = {name: extract_with(name) for name in ("noisy", "clean", "teacher", "other", "zeroed")}
    keys = {"told": "noisy", "told_clean": "clean", "told_two_ear_mean": "two_ear_mean", "told_front": "front"}
    measured: dict[str, Any] = {key: _is_nearest_to_target(vectors, name) for key, name in keys.items()}
    empty = evaluator.model.enrollment_encoder.encode(_whole(scene.enrollment - scene.enrollment_target))
    measured |= {
        name: float(enrolled.frontal_level_db) >= network.config.least_front_db
        for name, enrolled in (("seen", noisy), ("seen_in_empty", empty))
    }
    if not target.any():
        level = [_power(sounds["noisy"][..., OVERLAP:]), _power(mixture[..., :-OVERLAP])]
        return measured | {"absent_db": 10.0 * float(np.log10((level[0] + _FLOOR) / level[1]))}
    talkers = torch.from_numpy(talkers_by_stream(scene, network.config.extractor.outputs))[..., : mixture.shape[-1]]
    order = best_order(streams[..., OVERLAP:], talkers[None, ..., :-OVERLAP], mixture[..., :-OVERLAP])[0]
    stream_of = [int(order.tolist().index(slot)) for slot in slots(scene, network.config.extractor.outputs)]
    before = _ratio(mixture[..., :-OVERLAP], target[..., :-OVERLAP])
    measured["input_db"] = before
    for name, sound in sounds.items():
        measured[f"{name}_db"] = _ratio(sound[..., OVERLAP:], target[..., :-OVERLAP]) - before
    other = torch.from_numpy(scene.interferers)[:1, :, : mixture.shape[-1] - OVERLAP]
    other_before = _ratio(mixture[..., :-OVERLAP], other)
    measured["other_to_other_db"] = _ratio(sounds["other"][..., OVERLAP:], other) - other_before
    stream = streams[:, stream_of[0]]
    measured["right_stream_db"] = _ratio(stream[..., OVERLAP:], target[..., :-OVERLAP]) - before
    measured["separation_db"] = _separation(streams[0], talkers[order], stream_of, mixture)
    oracle = _oracle_mask(mixture, target)
    measured["oracle_mask_db"] = _ratio(oracle[..., OVERLAP:], target[..., :-OVERLAP]) - before
    both = mixture.mean(dim=1, keepdim=True).expand_as(mixture)
    measured["beamformer_db"] = _ratio(both[..., :-OVERLAP], target[..., :-OVERLAP]) - before
    return measured | _cues(sounds["noisy"][0, :, OVERLAP:].numpy(), target[0, :, :-OVERLAP].numpy())


def _whole(sound: np.ndarray) -> Tensor:
    """Return (1, 2, T), cut to a whole number of chunks."""
    return torch.from_numpy(sound[None, :, : sound.shape[-1] // CHUNK * CHUNK].copy())


def _vectors(evaluator: Evaluator, scene: Scene, noisy: EnrollmentOutput) -> dict[str, Tensor]:
    """Return vectors, (1, 256) each: several enrollments of the target, and the teacher's of every talker."""
    by_talker = {f"talker_{n}": evaluator.speaker_vectors[t.voice][None] for n, t in enumerate(scene.plan.talkers)}
    return by_talker | {
        "noisy": noisy.vector,
        "clean": evaluator.model.enrollment_encoder(_whole(scene.enrollment_target)),
        "teacher": embed(evaluator.teacher, torch.from_numpy(scene.clean)[None]),
        "front": embed(evaluator.teacher, noisy.frontal.mean(dim=1)),
        "two_ear_mean": embed(evaluator.teacher, _whole(scene.enrollment).mean(dim=1)),
        "other": by_talker["talker_1"],
        "zeroed": torch.zeros_like(noisy.vector),
    }


def _is_nearest_to_target(vectors: dict[str, Tensor], name: str) -> bool:
    """Return whether a vector is nearer to the target than to every other talker of the mixture."""
    talkers = [vector for key, vector in vectors.items() if key.startswith("talker_")]
    similarities = [float((vectors[name] * vector).sum()) for vector in talkers]
    return similarities[0] > max(similarities[1:])


def _power(sound: Tensor) -> float:
    return float(sound.double().square().mean())


def _ratio(estimate: Tensor, reference: Tensor) -> float:
    return float(si_sdr_db(estimate, reference).mean())


def _separation(streams: Tensor, talkers: Tensor, stream_of: list[int], mixture: Tensor) -> float | None:
    gains = []
    for stream in stream_of:
        reference = talkers[stream][None, :, :-OVERLAP]
        if not reference.any():
            return None
        gains.append(_ratio(streams[stream][None, :, OVERLAP:], reference) - _ratio(mixture[..., :-OVERLAP], reference))
    return float(np.mean(gains))


def _oracle_mask(mixture: Tensor, target: Tensor) -> Tensor:
    """Return the mixture filtered by the ideal ratio mask on the extractor's frames."""
    reference, rest = (analyze(sound).square().sum(-2, keepdim=True) for sound in (target, mixture - target))
    return synthesize(analyze(mixture) * (reference / (reference + rest + _FLOOR)).sqrt())


def _cues(estimate: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return the mean errors of interaural level and time differences while the target is active."""
    step = round(_CUE_S * SAMPLE_RATE)
    edges = list(pairwise(range(0, reference.shape[-1] + 1, step)))
    loud = [(a, b) for a, b in edges if np.sqrt(np.mean(reference[:, a:b] ** 2)) > _CUE_LEAST]
    if not loud:
        return {}
    ours, theirs = (np.stack([sound[:, a:b] for a, b in loud]) for sound in (estimate, reference))
    weight = np.sum(theirs.astype(np.float64) ** 2, axis=(1, 2))
    level = np.abs(level_difference_db(ours) - level_difference_db(theirs))
    time = np.abs(time_difference_s(ours) - time_difference_s(theirs))
    return {
        "ild_error_db": float(np.average(level, weights=weight)),
        "itd_error_us": 1e6 * float(np.average(time, weights=weight)),
    }
