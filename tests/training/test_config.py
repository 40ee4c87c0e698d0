"""Configuration files are read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from audio_llm.errors import ConfigError
from audio_llm.training.config import config_from_dict, config_to_dict, load_config, renamed


@dataclass(frozen=True)
class Inner:
    layers: int = 2
    dropout: float = 0.1


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 1e-3
    kind: Literal["small", "tiny"] = "small"
    folder: Path | None = None
    speeds: tuple[float, ...] = (0.9, 1.0)
    shares: dict[str, float] = field(default_factory=dict)
    voices: list[str] = field(default_factory=list)
    model: Inner = Inner()
    on: bool = False


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_and_overrides(tmp_path: Path) -> None:
    text = "name: a\nrate: 1e-4\nfolder: data/x\nspeeds: [1, 1.1]\nshares: {a: 1}\nmodel:\n  layers: 3\n"
    path = write(tmp_path, text)
    config = load_config(Outer, path, ["model.dropout=0", "kind=tiny", "on=true", "voices=[slt, rms]"])
    assert config == Outer(
        name="a",
        rate=1e-4,
        kind="tiny",
        folder=Path("data/x"),
        speeds=(1.0, 1.1),
        shares={"a": 1.0},
        voices=["slt", "rms"],
        model=Inner(layers=3, dropout=0.0),
        on=True,
    )
    assert isinstance(config.speeds[0], float)
    assert config_from_dict(Outer, config_to_dict(config)) == config


def test_null_and_empty(tmp_path: Path) -> None:
    assert load_config(Inner, write(tmp_path, "")) == Inner()
    assert load_config(Inner, None, ["layers=7"]).layers == 7
    assert load_config(Outer, write(tmp_path, "name: a\nfolder: null\n")).folder is None


@pytest.mark.parametrize(
    "text, override, message",
    [
        ("name: a\nrats: 1\n", None, "did you mean 'rate'"),
        ("name: a\nmodel: {layer: 1}\n", None, "did you mean 'model.layers'"),
        ("name: a\n", "model.layrs=1", "did you mean 'model.layers'"),
        ("name: a\nrate: fast\n", None, "'rate' is 'fast'"),
        ("name: a\nmodel: {layers: 2.5}\n", None, "'model.layers' is 2.5"),
        ("name: a\nmodel: {layers: true}\n", None, "type int"),
        ("name: a\nkind: huge\n", None, "use one of small, tiny"),
        ("name: a\nspeeds: 1\n", None, "give a list"),
        ("name: a\nmodel: 3\n", None, "'model' must be a mapping"),
        ("name: 5\n", None, "'name' is 5"),
        ("rate: 1\n", None, "key 'name' is missing"),
        ("- a\n", None, "not a mapping"),
        ("name: [a\n", None, "not valid YAML"),
        ("name: a\n", "rate", "not of the form key=value"),
        ("name: a\n", "name.first=1", "single value without nested keys"),
    ],
)
def test_errors_name_the_remedy(tmp_path: Path, text: str, override: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, write(tmp_path, text), [override] if override else [])
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Outer, tmp_path / "none.yaml")


@dataclass(frozen=True)
class _Inner:
    steps: int
    rate: float = 1.0


@dataclass(frozen=True)
class _Outer:
    inner: _Inner = field(default_factory=lambda: _Inner(steps=7, rate=3.0))


def test_naming_one_nested_key_keeps_the_default_of_the_others() -> None:
    assert load_config(_Outer, None, ["inner.rate=5"]) == _Outer(_Inner(7, 5.0))


@dataclass(frozen=True)
class _Renamed:
    weight: float = renamed("listener", 0.5)
    other: int = 1


@dataclass(frozen=True)
class _HoldsRenamed:
    first: _Renamed = field(default_factory=lambda: _Renamed(weight=0.25, other=2))
    second: _Renamed | None = None


def test_a_former_key_loads_also_in_nested_mappings() -> None:
    assert load_config(_Renamed, None, ["listener=2"]) == load_config(_Renamed, None, ["weight=2"]) == _Renamed(2.0)
    nested = load_config(_HoldsRenamed, None, ["first.listener=2", "second.listener=3"])
    assert nested == _HoldsRenamed(_Renamed(2.0, 2), _Renamed(3.0))
    assert config_to_dict(nested)["second"] == {"weight": 3.0, "other": 1}


def test_a_former_and_a_current_key_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="'listener' is the former name of 'weight'"):
        config_from_dict(_Renamed, {"listener": 1.0, "weight": 2.0})
