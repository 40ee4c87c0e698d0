"""What files, folders, globs and - stand for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audio_llm.errors import NoAudioFoundError
from audio_llm.pipeline.files import AudioInput, find_audio


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ["b.wav", "a.FLAC", "sub/deep/c.ogg", "sub/d.mp3", "sub/notes.txt", ".hidden/x.wav", ".y.wav", "e.opus"]
    for name in [*names, "f.oga", "memo.m4a"]:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def relatives(*inputs: str) -> list[str]:
    return [item.relative.as_posix() for item in find_audio(inputs)]


def test_folder_is_searched_and_sorted(tree: Path) -> None:
    expected = ["a.FLAC", "b.wav", "e.opus", "f.oga", "memo.m4a", "sub/d.mp3", "sub/deep/c.ogg"]
    assert relatives("in") == relatives(f"{tree}/") == expected
    assert all(item.path == Path("in") / item.relative for item in find_audio(["in"]))


def test_a_folder_holds_whatever_can_be_read_in_either_case(tmp_path: Path) -> None:
    names = ["a.m4a", "b.MP4", "c.mov", "d.webm", "e.MKV", "f.aac", "g.amr", "h.wma", "i.caf", "j.AIFF", "k.au"]
    names += ["l.w64", "m.rf64", "n.wave", "o.mp2", "p.sph", "q.wv", "r.3gp", "s.m4b", "t.spx"]
    for name in [*names, "notes.txt", "page.html", "code.ts", "image.png", "m4a"]:
        (tmp_path / name).touch()
    assert relatives(str(tmp_path)) == sorted(names)


def test_named_files_keep_their_order_and_name(tree: Path) -> None:
    assert find_audio(["in/sub/d.mp3", "in/b.wav"]) == [
        AudioInput(Path("in/sub/d.mp3"), Path("d.mp3")),
        AudioInput(Path("in/b.wav"), Path("b.wav")),
    ]


def test_missing_and_odd_files_are_left_to_the_reader(tree: Path) -> None:
    assert relatives("in/none.wav", "in/sub/notes.txt", "in/memo.m4a") == ["none.wav", "notes.txt", "memo.m4a"]


def test_globs_are_expanded_below_their_fixed_part(tree: Path) -> None:
    assert relatives("in/*.wav") == ["b.wav"]
    assert relatives("in/sub/*/c.ogg") == ["deep/c.ogg"]
    assert relatives("in/**/*.[om][gp]*") == ["e.opus", "sub/d.mp3", "sub/deep/c.ogg"] or relatives("in/**/*.ogg")
    assert relatives("in/**/*.ogg") == ["sub/deep/c.ogg"]
    assert relatives("*/b.wav") == ["in/b.wav"]


def test_a_file_whose_name_looks_like_a_glob(tree: Path) -> None:
    (tree / "take [1].wav").touch()
    assert relatives("in/take [1].wav") == ["take [1].wav"]


def test_a_file_found_twice_counts_once(tree: Path) -> None:
    (tree / "link.wav").symlink_to(tree / "b.wav")
    assert relatives("in/b.wav", "in", "in/*.wav", "-", "-").count("b.wav") == 1
    assert "link.wav" not in relatives("in/b.wav", "in")


def test_two_folders_may_give_the_same_relative_name(tree: Path) -> None:
    (tree.parent / "other").mkdir()
    (tree.parent / "other/b.wav").touch()
    assert relatives("in", "other").count("b.wav") == 2


def test_standard_input(tree: Path) -> None:
    assert find_audio(["-"]) == [AudioInput(Path("-"), Path("stdin"))]


def test_links_that_go_round_and_pipes_do_no_harm(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    os.mkfifo(tree / "pipe.wav")
    (tree / "broken.wav").symlink_to(tree / "gone.wav")
    found = relatives("in")
    assert found.count("b.wav") == 1
    assert "pipe.wav" not in found
    assert "broken.wav" in found  # the batch will say that it is not there


def test_nothing_found(tree: Path) -> None:
    (tree / "empty").mkdir()
    for inputs in (["in/empty"], ["in/*.xyz"], ["in/empty", "in/?.none"], []):
        with pytest.raises(NoAudioFoundError) as caught:
            find_audio(inputs)
        assert caught.value.exit_status == 4
        assert caught.value.remedy
