"""Names in texts of Kathleen: accuracy with and without a word list, and the effect on all other words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from audio_llm.align import edits
from audio_llm.text import DEFAULT_NORMALIZER

NAMES = {
    "kathleen": (
        *(
            "Phil",
            "Jeanne",
            "Jacques Le Beau",
            "Saxon",
            "George Moore's Vampire",
            "McFee",
            "Womble",
            "Yukon",
            "Michael",
        ),
        *("Charles", "Philip", "Gregson", "Eileen", "MacDougall", "Howison", "Rogers", "Yang-tse River"),
        *("Peasant Revolt", "Oona", "Longfellow"),
    ),
    "tune-kathleen": (
        *(
            "Martin",
            "Francois",
            "Perrault",
            "Jeanne",
            "Naomi",
            "Lop-Ear",
            "Carnegie",
            "Ernest",
            "Philip",
            "Fire People",
        ),
        *("Steels", "Tom King", "Siberia", "Lake Linderman", "Peterborough", "Eurasian", "Charley", "Thorpe", "Corry"),
        *("Hutchinson", "Mabel", "Holmes", "Claudine", "Honolulu", "Big-Face", "Pierre", "Pasquini", "Kerfoot"),
    ),
}


def count(references: Sequence[str], hypotheses: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    """Return counts of words of names, correct and inserted ones, and of other words and their errors."""
    listed = {word for name in names for word in DEFAULT_NORMALIZER(name).split()}
    listed |= {f"{word}'s" for word in listed}
    total: Counter[str] = Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        expected, written = DEFAULT_NORMALIZER(reference).split(), DEFAULT_NORMALIZER(hypothesis).split()
        wrong = set()
        for edit in edits(expected, written):
            wrong.update(range(edit.source_start, edit.source_end))
            new = written[edit.target_start : edit.target_end]
            gone = expected[edit.source_start : edit.source_end]
            total["names not said"] += max(0, sum(w in listed for w in new) - sum(w in listed for w in gone))
            extra = max(0, len(new) - (edit.source_end - edit.source_start))
            total["other errors"] += extra
        for index, word in enumerate(expected):
            kind = "names" if word in listed else "others"
            total[kind] += 1
            total["names right"] += kind == "names" and index not in wrong
            total["other errors"] += kind == "others" and index in wrong
    return dict(total)
