"""Pictures of the sound recipes' figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")
NOISES = ("white", "babble")


def size(path: Path) -> tuple[int, int]:
    from matplotlib import image

    height, width = image.imread(path).shape[:2]
    return width, height


def test_every_set_of_mixtures_has_its_line(recipe_module: Callable[[str, str], ModuleType], tmp_path: Path) -> None:
    plot = recipe_module("gense", "plot")
    rows = [
        {"set": name, "system": system, "pesq_wb": 1.0 + number, "estoi": 0.5, "si_sdr_db": 3.0, "ovrl": 2.0}
        for name in ("rooms", "street")
        for system in ("noisy", "mask")
        for number in range(3)
    ]
    plot.draw(rows, tmp_path / "two.png")
    plot.draw(rows[:6], tmp_path / "one.png")
    assert size(tmp_path / "two.png")[1] == pytest.approx(2 * size(tmp_path / "one.png")[1], rel=0.05)


def test_a_tokenizers_table_becomes_a_panel_a_noise(
    recipe_module: Callable[[str, str], ModuleType], tmp_path: Path
) -> None:
    plot = recipe_module("codec", "plot")
    table = [
        "120 utterances of 23 people",
        "| condition | one: WER % | ids changed % | level distance | two: WER % | ids changed % | level distance |",
        "|---|---|---|---|---|---|---|",
        "| clean | 60.0 | - | - | 61.0 | - | - |",
        *(
            f"| {noise}, {snr} dB | 70.0 | 50 | 0.2 | 80.0 | 60 | 0.3 |"
            for noise in ("white", "babble")
            for snr in (20, 0)
        ),
        "one: 9.02 bits a token",
    ]
    plot.draw(table, tmp_path / "picture.png")
    width, height = size(tmp_path / "picture.png")
    assert width == pytest.approx(2 * 3.4 / 3.6 * height, rel=0.02)


def test_every_speaking_system_has_its_bars(recipe_module: Callable[[str, str], ModuleType], tmp_path: Path) -> None:
    plot = recipe_module("touchtts", "plot")
    table = ["50 sentences", "| system | picked | character error rate, % | OVRL | seconds |", "|---|---|---|---|---|"]
    table += [f"| {name} | {10 * number} of 50 | 20.0 | 3.00 | 3.10 |" for number, name in enumerate("abcdef")]
    plot.draw([*table, "| kathleen | 50 | 30.0 % | 20.0 % |"], tmp_path / "six.png")
    plot.draw(table[:6], tmp_path / "three.png")
    assert size(tmp_path / "six.png")[0] == size(tmp_path / "three.png")[0]
    assert size(tmp_path / "six.png")[1] > 1.3 * size(tmp_path / "three.png")[1]
