from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from audio_llm.dlm.generate import GenerationConfig, Plan, generate, plan_recordings
from audio_llm.dlm.generate_ray import generate_on_ray
from audio_llm.errors import AudioLLMError, DataError, MissingDependencyError, UsageError

SAMPLES = Path(__file__).parents[2] / "samples" / "speech"


def plan(nbest: int = 3) -> Plan:
    rows = [(p.stem, str(p), p.stem) for p in sorted(SAMPLES.glob("kathleen*.ogg"))[:3]]
    return plan_recordings(rows, GenerationConfig(shard_size=1, nbest=nbest))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'audio-llm\[ray\]'"):
        generate_on_ray(plan(), tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")  # it would write a token into the home folder; we stay on this machine
    # Not below pytest's own folder: Ray puts sockets there, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        for last in (False, False, True):
            try:
                ray.init(
                    num_cpus=1,
                    include_dashboard=False,
                    object_store_memory=100 * 2**20,
                    log_to_driver=False,
                    _temp_dir=folder,
                    _node_ip_address="127.0.0.1",
                )
                break
            except Exception:  # it gives up after a fixed 30 s, which a busy machine may need
                ray.shutdown()
                if last:
                    raise
        yield
        ray.shutdown()
    patch.undo()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_shards_are_those_of_the_local_engine_and_resume(tmp_path: Path) -> None:
    generate(plan(), tmp_path / "local")
    expected = shards(tmp_path / "local")
    assert len(expected) == 6

    left = generate_on_ray(plan(), tmp_path / "ray", max_minutes=0.0)
    assert (left.generated, left.existing, left.remaining) == (0, 0, 3)
    assert shards(tmp_path / "ray") == {}

    seen: list[tuple[int, int]] = []
    report = generate_on_ray(plan(), tmp_path / "ray", progress=lambda done, planned: seen.append((done, planned)))
    assert (report.generated, report.existing, report.remaining, report.failed_items) == (3, 0, 0, 0)
    assert shards(tmp_path / "ray") == expected
    assert sorted(seen) == [(1, 3), (2, 3), (3, 3)]

    (tmp_path / "ray" / "shard-00001.ok").unlink()
    again = generate_on_ray(plan(), tmp_path / "ray")
    assert (again.generated, again.existing) == (1, 2)
    assert shards(tmp_path / "ray") == expected
    assert generate(plan(), tmp_path / "ray").existing == 3
    assert generate_on_ray(plan(), tmp_path / "ray").generated == 0

    with pytest.raises(DataError, match="another plan"):
        generate_on_ray(plan(nbest=4), tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_failures_raise_the_packages_error(tmp_path: Path) -> None:
    rows = [(f"r{i}", str(tmp_path / "missing.wav"), "text") for i in range(5)]
    with pytest.raises(AudioLLMError, match="5 of 5 items failed"):
        generate_on_ray(plan_recordings(rows, GenerationConfig()), tmp_path / "pairs")
    with pytest.raises(UsageError, match="absolute"):
        generate_on_ray(plan_recordings([("a", "a.wav", "text")], GenerationConfig()), tmp_path / "relative")
