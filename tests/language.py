"""Counts words that only this project gives their meaning: `python tests/language.py [FOLDER ...]` lists them.

Identifiers are counted where they are defined (functions, classes, arguments, variables, attributes, modules), by words
between underscores and capitals. Text is counted in docstrings, in strings of the command lines, and in Markdown files.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CODE = ("audio_llm", "recipes", "realtime", "export")
TEXT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "samples", *CODE)

_WORDS = """
look looks looked heard hear hears told front found made kept own wanted share shares place places others beside anew
behind nobody spoken say says said talk talks listener opinion opinions judge judged trunk choice choices people persons
whoever sight spoilt likeness familiar mine layout script pace cells guard guards ledger wishes playout
"""
WORDS = frozenset(_WORDS.split())
_TITLE = "Look Once to Hear"  # of a paper
ALLOWED = ("sequence_layout", "not_found", "no_audio_found")  # terms of the field that contain one of the words

PHRASES = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "look (enrollment)": r"\blooks?\b(?! up| like)|\blooked at\b",
        "heard, hears (recognized, processed)": r"\bheard\b|\bhears\b|\bto hear\b|(?<!-)\bhear (?!about)",
        "told (distinguished)": r"\btold\b",
        "in front, front (frontal speaker)": r"\bin front\b(?! of)|\bfront (?:talker|head|speaker)",
        "anew": r"\banew\b",
        "beside (concurrently)": r"\bbeside\b",
        "nobody": r"\bnobody\b",
        "whoever": r"\bwhoever\b|\bwho is looked\b",
        "people, persons (speakers)": r"\b(?:people|persons)\b",
        "talks (utterances)": r"\btalks\b",
        "spoken by a machine": r"\bspoken (?:anew|by an? (?:model|engine))\b|\bspeaks? anew\b",
        "listener (perceptual loss)": r"\blisteners?\b",
        "opinion (rescoring)": r"\bopinions?\b",
        "trunk (separator)": r"\btrunks?\b",
        "spoilt, likeness, ledger, wishes, playout": r"\b(?:spoilt|likeness|ledger|wishes|playout)\b",
        "made up (synthetic)": r"\bmade[- ]up\b",
        "go on with (resume)": r"\b(?:go|goes|going|gone|went) on with\b",
        "stands for": r"\bstands? for\b|\bstood for\b",
        "is of no account": r"\bof no account\b",
        "weak form": r"(?m)(?:^|: |\. )(?:Of (?:it|them|both|each)\.)|\bof both\.|^\s+[\w, `]+(?: \([^)]*\))?: Of ",
    }.items()
}


@dataclass(frozen=True)
class Use:
    """One use of a private word or phrase."""

    path: str
    line: int
    word: str
    where: str


def python_files(folder: str) -> list[Path]:
    """Return the modules below a folder of the project, those of tests left out."""
    paths = sorted((PROJECT / folder).rglob("*.py"))
    return [path for path in paths if "tests" not in path.relative_to(PROJECT).parts and "build" not in path.parts]


def identifiers(folder: str) -> Iterator[Use]:
    """Yield every private word in an identifier that is defined below a folder."""
    for path in python_files(folder):
        name = path.relative_to(PROJECT).as_posix()
        for word in private_words(path.stem):
            yield Use(name, 1, word, path.stem)
        for line, identifier in defined(ast.parse(path.read_text(encoding="utf-8"))):
            for word in private_words(identifier):
                yield Use(name, line, word, identifier)


def defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield 1, node.asname


def private_words(identifier: str) -> list[str]:
    """Return the private words among the words of an identifier."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower()
    for term in ALLOWED:
        plain = plain.replace(term, "")
    return [word for word in plain.split("_") if word in WORDS]


def phrases(folder: str) -> Iterator[Use]:
    """Yield every private phrase in docstrings, in strings of command lines, and in Markdown below a folder."""
    root = PROJECT / folder
    markdown = [root] if root.suffix == ".md" else sorted(root.rglob("*.md"))
    for path in markdown:
        yield from _in_text(path.relative_to(PROJECT).as_posix(), 1, path.read_text(encoding="utf-8"))
    for path in [] if root.suffix == ".md" else python_files(folder):
        name = path.relative_to(PROJECT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented) and ast.get_docstring(node, clean=False):
                text = node.body[0].value  # type: ignore[attr-defined]
                yield from _in_text(name, text.lineno, text.value)
            elif _is_command_line(path) and isinstance(node, ast.keyword) and node.arg in ("help", "description"):
                for part in ast.walk(node.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield from _in_text(name, part.lineno, part.value)


def _is_command_line(path: Path) -> bool:
    return "add_argument" in path.read_text(encoding="utf-8")


def _in_text(name: str, first: int, text: str) -> Iterator[Use]:
    text = text.replace(_TITLE, " " * len(_TITLE))
    for label, pattern in PHRASES.items():
        for match in pattern.finditer(text):
            line = first + text.count("\n", 0, match.start())
            around = " ".join(text[max(0, match.start() - 30) : match.end() + 30].split())
            yield Use(name, line, label, around)


def main() -> None:
    """Print every use below the folders of the command line, or in the whole project."""
    chosen = sys.argv[1:]
    uses = [use for folder in chosen or CODE if not folder.endswith(".md") for use in identifiers(folder)]
    uses += [use for folder in chosen or TEXT for use in phrases(folder)]
    for use in uses:
        print(f"{use.path}:{use.line}: {use.word}: {use.where}")
    print(f"{len(uses)} uses", file=sys.stderr)


if __name__ == "__main__":
    main()
