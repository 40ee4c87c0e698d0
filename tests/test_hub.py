"""Model directories: what is saved comes back, and nothing damaged or unsafe is loaded."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from audio_llm import hub
from audio_llm.download.install import get_model
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PRETRAINED", tmp_path / "pretrained")
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor([7])}
    provenance = {"recipe": "recipes/dlm", "seed": 3}
    return hub.save_model(
        tmp_path / "model", {"width": 3}, tensors, "dlm", "# card\n", provenance, {"vocabulary.json": '["a"]'}
    )


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_saved_model_comes_back(model: Path) -> None:
    loaded = hub.load_model(model, "dlm")
    assert loaded.config == {"width": 3}
    assert loaded.kind == "dlm"
    assert loaded.provenance == {"recipe": "recipes/dlm", "seed": 3}
    assert torch.equal(loaded.tensors["layer.weight"], torch.arange(6.0).reshape(2, 3))
    assert loaded.tensors["steps"].dtype == torch.int64
    assert (loaded.path / "vocabulary.json").read_text() == '["a"]'
    assert hub.verify_model(model).kind == "dlm"
    assert hub.model_kind(model) == "dlm"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in [model, *model.iterdir()])  # others may read it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -2.0, 3.0])
    loaded = hub.load_model(hub.save_model(tmp_path / "half", {}, {"w": values.to(dtype)}, "ctc", ""))
    assert loaded.tensors["w"].dtype == torch.float32
    assert torch.equal(loaded.tensors["w"], values)


def test_weights_are_read_without_torch_too(tmp_path: Path) -> None:
    values = torch.tensor([0.5, -2.0, 3.0])
    loaded = hub.load_arrays(hub.save_model(tmp_path / "half", {"a": 1}, {"w": values.half()}, "ctc", ""), "ctc")
    assert loaded.arrays["w"].dtype == "float32"
    assert loaded.arrays["w"].tolist() == values.tolist()
    assert loaded.config == {"a": 1}
    brain = hub.save_model(tmp_path / "brain", {}, {"w": values.bfloat16()}, "ctc", "")
    with contextlib.suppress(ModelFormatError):  # numpy alone has no such numbers
        assert hub.load_arrays(brain).arrays["w"].tolist() == values.tolist()


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    loaded = hub.load_model(hub.save_model(tmp_path / "m", {}, {"a": weight, "b": weight, "t": weight.T}, "dlm", ""))
    assert torch.equal(loaded.tensors["a"], loaded.tensors["b"])
    assert torch.equal(loaded.tensors["t"], weight.T)


def test_saving_again_replaces_the_model_and_keeps_other_files(model: Path) -> None:
    (model / "training.log").write_text("kept")
    hub.save_model(model, {"width": 9}, {"w": torch.zeros(1)}, "dlm", "# new\n")
    assert hub.load_model(model).config == {"width": 9}
    assert (model / "training.log").read_text() == "kept"
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"]


def test_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        hub.save_model(tmp_path / "m", {"bad": object()}, {"w": torch.zeros(1)}, "dlm", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.json", "weights.bin", "config.json", "code.py"])
def test_assets_are_plain_text_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot lie in a model directory"):
        hub.save_model(tmp_path / "m", {}, {"w": torch.zeros(1)}, "dlm", "", assets={name: ""})


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json"])
def test_changed_file_is_refused(model: Path, name: str) -> None:
    data = bytearray((model / name).read_bytes())
    data[-1] ^= 1
    (model / name).write_bytes(bytes(data))
    with pytest.raises(ModelFormatError, match=rf"{name}.*another sha256") as caught:
        hub.load_model(model)
    assert caught.value.remedy
    assert caught.value.exit_status == 3


def test_missing_file_is_refused(model: Path) -> None:
    (model / "vocabulary.json").unlink()
    with pytest.raises(ModelFormatError, match=r"vocabulary\.json.*is missing"):
        hub.load_model(model)


def test_edited_card_loads_but_does_not_verify_until_rehashed(model: Path) -> None:
    (model / "README.md").write_text("# other\n")
    assert hub.load_model(model).kind == "dlm"
    with pytest.raises(ModelFormatError, match=r"README\.md"):
        hub.verify_model(model)
    hub.write_card(model, "# better\n")
    hub.verify_model(model)
    assert (model / "README.md").read_text() == "# better\n"


def test_unknown_version_is_refused(model: Path) -> None:
    edit_config(model, format_version=99)
    with pytest.raises(ModelFormatError, match=r"format version 99, this one reads 1.*update audio-llm"):
        hub.load_model(model)


def test_wrong_kind_is_refused(model: Path) -> None:
    with pytest.raises(ModelFormatError, match="is a model of kind dlm, not ctc"):
        hub.load_model(model, "ctc")


@pytest.mark.parametrize("changes", [{"kind": 3}, {"config": None}, {"sha256": {}}, {"sha256": {"../x": "0"}}])
def test_config_of_a_wrong_form_is_refused(model: Path, changes: dict[str, object]) -> None:
    if changes.get("sha256"):
        changes = {"sha256": {**json.loads((model / "config.json").read_text())["sha256"], "../x": "0"}}
    edit_config(model, **changes)
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        hub.load_model(model)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff"])
def test_unreadable_config_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        hub.load_model(model)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("form", ["bare", "torch"])
def test_pickle_in_place_of_weights_is_never_run(model: Path, form: str) -> None:
    weights = model / "model.safetensors"
    if form == "bare":
        weights.write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"w": _Bomb()}, weights)
    with pytest.raises(ModelFormatError, match="holds a pickle instead of safetensors"):
        hub.load_model(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt", "m.pkl", "M.PTH"])
def test_pickle_file_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ModelFormatError, match=r"is a pickle.*never loaded"):
        hub.load_model(model)


def test_weights_that_are_not_safetensors_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(b"no weights at all")
    document = json.loads((model / "config.json").read_text())
    edit_config(model, sha256={**document["sha256"], weights.name: hub.file_sha256(weights)})
    with pytest.raises(ModelFormatError, match="not readable as safetensors"):
        hub.load_model(model)


def test_models_are_found_by_path_by_name_and_in_the_cache(cache: Path, tmp_path: Path) -> None:
    shipped = hub.save_model(tmp_path / "pretrained" / "dlm-small", {}, {"w": torch.zeros(1)}, "dlm", "")
    cached = hub.save_model(cache / "someone--model", {}, {"w": torch.zeros(1)}, "ctc", "")
    assert hub.find_model("dlm-small") == shipped
    assert hub.find_model("someone/model") == cached
    assert hub.find_model(str(shipped)) == shipped
    assert [(model.name, model.kind, model.problem) for model in hub.list_models()] == [
        ("dlm-small", "dlm", None),
        ("someone/model", "ctc", None),
    ]


def test_missing_model_names_near_ones(cache: Path, tmp_path: Path) -> None:
    hub.save_model(tmp_path / "pretrained" / "dlm-small", {}, {"w": torch.zeros(1)}, "dlm", "")
    with pytest.raises(ModelNotFoundError, match="did you mean dlm-small") as caught:
        hub.find_model("dlm-smal")
    assert caught.value.exit_status == 3
    for name in ("", "../pretrained/dlm-small", "/nowhere/at/all"):
        with pytest.raises(ModelNotFoundError):
            hub.load_model(name)


def test_damaged_model_is_listed_with_its_problem(cache: Path) -> None:
    folder = hub.save_model(cache / "broken", {}, {"w": torch.zeros(1)}, "dlm", "")
    (folder / "config.json").write_text("{")
    (info,) = hub.list_models()
    assert info.name == "broken"
    assert info.problem is not None
    assert "config.json" in info.problem


def test_folder_of_transformers_is_listed_as_such(cache: Path) -> None:
    folder = cache / "openai--whisper-tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    (info,) = hub.list_models()
    assert (info.name, info.kind, info.problem) == ("openai/whisper-tiny", "transformers:whisper", None)
    with pytest.raises(ModelFormatError, match="not a model of this package"):
        hub.load_model("openai/whisper-tiny")


@pytest.mark.parametrize("variable", ["AUDIO_LLM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_variables_forbid_downloads(cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    assert hub.is_offline()
    with pytest.raises(UsageError, match="downloads are forbidden"):
        get_model("someone/model")
    for name in ("AUDIO_LLM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert not hub.is_offline()


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "~/.cache/audio-llm/models"),
        ("linux", {"XDG_CACHE_HOME": "/data/cache"}, "/data/cache/audio-llm/models"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/audio-llm/models"),
        ("darwin", {"XDG_CACHE_HOME": "/data/cache"}, "~/Library/Caches/audio-llm/models"),
        ("win32", {"LOCALAPPDATA": "/users/me/local"}, "/users/me/local/audio-llm/models"),
        ("win32", {}, "~/AppData/Local/audio-llm/models"),
        ("linux", {"AUDIO_LLM_CACHE": "/models", "XDG_CACHE_HOME": "/data/cache"}, "/models"),
        ("linux", {"AUDIO_LLM_CACHE": "~/models"}, "~/models"),
    ],
)
def test_models_lie_in_the_cache_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], folder: str
) -> None:
    for name in ("AUDIO_LLM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hub.sys, "platform", platform)
    assert hub.cache_folder() == Path(folder).expanduser()
