"""What a model makes of each test scene: a line of measures a scene, written as it comes."""

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
from audio_llm.tse.enrolment import Enrolled
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE, analyze, synthesize
from audio_llm.tse.losses import best_order
from audio_llm.tse.models import TargetSpeechModel
from audio_llm.tse.selector import weigh
from audio_llm.tse.speaker import SpeakerEncoder, embed
from audio_llm.tse.train_separator import slots, talkers_by_stream

SEED = 7  # of the test scenes
_CUE_S = 0.25  # of a piece in which cues are measured
_CUE_LEAST = 1e-3  # RMS of the target there
_FLOOR = 1e-12


@dataclass(frozen=True)
class Judge:
    """What is measured, and what knows people from clean speech.

    Attributes:
        model: What hears.
        teacher: Whose vectors of clean speech say who is who.
        people: (V, 256), its vector of every voice of the sources.
    """

    model: TargetSpeechModel
    teacher: SpeakerEncoder
    people: Tensor


def evaluate(
    measures: Callable[[Scene], dict[str, Any]],
    model: str,
    sources: SceneSources,
    config: SceneConfig,
    count: int,
    path: Path,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Append the measures of the scenes that the file does not hold yet.

    Args:
        measures: Of a scene.
        model: Fingerprint of what is measured.
        sources: Of the test.
        config: How scenes are drawn.
        count: Scenes 0 to this.
        path: JSON lines.
        part: Of several processes, this one's number and how many there are.

    Raises:
        UsageError: The file holds measures of another model.
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
    """Return the rows of a file, none where there is no file; a row cut off by a kill is removed from it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def describe(sources: SceneSources, scene: Scene) -> dict[str, Any]:
    """Return what a scene is like."""
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
        "look_snr_db": plan.look_snr_db,
        "look_error_deg": plan.look[0].azimuth,
        "look_people": len(plan.look),
        "look_behind": any(abs(talker.azimuth - 180.0) < 18.0 for talker in plan.look[1:]),
        "absent": plan.absent,
        "one_recording": plan.one_recording,
    }


@torch.inference_mode()
def measure(judge: Judge, scene: Scene) -> dict[str, Any]:
    """Return the measures of one scene, in dB where the name ends so; ratios are means over both ears."""
    mixture = _whole(scene.mixture)
    target = torch.from_numpy(scene.target)[None, :, : mixture.shape[-1]]
    hearing = judge.model.hearing
    streams = hearing.extractor(mixture)
    listened = hearing.selector.listen(streams)
    noisy = judge.model.enrolment.encode(_whole(scene.look))
    vectors = _vectors(judge, scene, noisy)

    def hear(person: str) -> Tensor:
        return weigh(streams, hearing.selector.choose(listened, vectors[person])[0])

    sounds = {person: hear(person) for person in ("noisy", "clean", "teacher", "other", "zeroed")}
    found: dict[str, Any] = {"told": _told(vectors, "noisy"), "told_clean": _told(vectors, "clean")}
    found |= {"told_two_ear_mean": _told(vectors, "two_ear_mean"), "told_front": _told(vectors, "front")}
    empty = judge.model.enrolment.encode(_whole(scene.look - scene.look_target))
    found |= {
        name: float(enrolled.front_db) >= hearing.config.least_front_db
        for name, enrolled in (("seen", noisy), ("seen_in_empty", empty))
    }
    if not target.any():
        level = [_power(sounds["noisy"][..., OVERLAP:]), _power(mixture[..., :-OVERLAP])]
        return found | {"absent_db": 10.0 * float(np.log10((level[0] + _FLOOR) / level[1]))}
    talkers = torch.from_numpy(talkers_by_stream(scene, hearing.config.extractor.outputs))[..., : mixture.shape[-1]]
    order = best_order(streams[..., OVERLAP:], talkers[None, ..., :-OVERLAP], mixture[..., :-OVERLAP])[0]
    place = [int(order.tolist().index(slot)) for slot in slots(scene, hearing.config.extractor.outputs)]
    before = _ratio(mixture[..., :-OVERLAP], target[..., :-OVERLAP])
    found["input_db"] = before
    for person, sound in sounds.items():
        found[f"{person}_db"] = _ratio(sound[..., OVERLAP:], target[..., :-OVERLAP]) - before
    other = torch.from_numpy(scene.others)[:1, :, : mixture.shape[-1] - OVERLAP]
    found["other_to_other_db"] = _ratio(sounds["other"][..., OVERLAP:], other) - _ratio(mixture[..., :-OVERLAP], other)
    found["right_stream_db"] = _ratio(streams[:, place[0]][..., OVERLAP:], target[..., :-OVERLAP]) - before
    found["separation_db"] = _separation(streams[0], talkers[order], place, mixture)
    found["oracle_mask_db"] = _ratio(_oracle_mask(mixture, target)[..., OVERLAP:], target[..., :-OVERLAP]) - before
    both = mixture.mean(dim=1, keepdim=True).expand_as(mixture)
    found["beamformer_db"] = _ratio(both[..., :-OVERLAP], target[..., :-OVERLAP]) - before
    return found | _cues(sounds["noisy"][0, :, OVERLAP:].numpy(), target[0, :, :-OVERLAP].numpy())


def _whole(sound: np.ndarray) -> Tensor:
    """Return (1, 2, T) without what is over a whole number of chunks."""
    return torch.from_numpy(sound[None, :, : sound.shape[-1] // CHUNK * CHUNK].copy())


def _vectors(judge: Judge, scene: Scene, noisy: Enrolled) -> dict[str, Tensor]:
    """Return everybody's vector, (1, 256) each: of the look in several ways, of others, and by the teacher."""
    people = {f"person_{n}": judge.people[talker.voice][None] for n, talker in enumerate(scene.plan.talkers)}
    return people | {
        "noisy": noisy.vector,
        "clean": judge.model.enrolment(_whole(scene.look_target)),
        "teacher": embed(judge.teacher, torch.from_numpy(scene.clean)[None]),
        "front": embed(judge.teacher, noisy.front.mean(dim=1)),
        "two_ear_mean": embed(judge.teacher, _whole(scene.look).mean(dim=1)),
        "other": people["person_1"],
        "zeroed": torch.zeros_like(noisy.vector),
    }


def _told(vectors: dict[str, Tensor], name: str) -> bool:
    """Return whether a vector is nearer to the target than to every other talker of the mixture."""
    near = [float((vectors[name] * vector).sum()) for person, vector in vectors.items() if person.startswith("person")]
    return near[0] > max(near[1:])


def _power(sound: Tensor) -> float:
    return float(sound.double().square().mean())


def _ratio(found: Tensor, wanted: Tensor) -> float:
    return float(si_sdr_db(found, wanted).mean())


def _separation(streams: Tensor, talkers: Tensor, place: list[int], mixture: Tensor) -> float | None:
    gains = []
    for stream in place:
        wanted = talkers[stream][None, :, :-OVERLAP]
        if not wanted.any():
            return None
        gains.append(_ratio(streams[stream][None, :, OVERLAP:], wanted) - _ratio(mixture[..., :-OVERLAP], wanted))
    return float(np.mean(gains))


def _oracle_mask(mixture: Tensor, target: Tensor) -> Tensor:
    """Return the mixture through the ideal ratio mask of the extractor's own frames."""
    wanted, rest = (analyze(sound).square().sum(-2, keepdim=True) for sound in (target, mixture - target))
    return synthesize(analyze(mixture) * (wanted / (wanted + rest + _FLOOR)).sqrt())


def _cues(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Return the mean errors of the differences in level and time between the ears, where the target talks."""
    step = round(_CUE_S * SAMPLE_RATE)
    edges = list(pairwise(range(0, wanted.shape[-1] + 1, step)))
    loud = [(a, b) for a, b in edges if np.sqrt(np.mean(wanted[:, a:b] ** 2)) > _CUE_LEAST]
    if not loud:
        return {}
    ours, theirs = (np.stack([sound[:, a:b] for a, b in loud]) for sound in (found, wanted))
    weight = np.sum(theirs.astype(np.float64) ** 2, axis=(1, 2))
    level = np.abs(level_difference_db(ours) - level_difference_db(theirs))
    time = np.abs(time_difference_s(ours) - time_difference_s(theirs))
    return {
        "ild_error_db": float(np.average(level, weights=weight)),
        "itd_error_us": 1e6 * float(np.average(time, weights=weight)),
    }
