"""From what a model said to the option it means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_prune.bench.accuracy.questions import Question, letters

_NOISE = re.compile(r"[^\w\s]+")


def judge(question: Question, said: str) -> tuple[str | None, bool]:
    """(the option's letter or the word that was said, whether it is right); None where no option can be told."""
    if question.options:
        choice = read_choice(said, question.options)
        return choice, choice == question.answer
    word = plain(said)
    if question.accepted:
        return word or None, any(_nearly(said, answer) for answer in (question.answer, *question.accepted))
    expected = plain(question.answer)
    # One-word answers: what follows it ("red.", "red, I think") does not make it another one.
    right = word == expected or word.startswith(f"{expected} ")
    return (question.answer if right else word or None), right


def _nearly(said: str, answer: str) -> bool:
    """Whether less than half of the characters are to be changed: what counts in ANLS (Biten et al., ICCV 2019).

    >>> _nearly("Northern Watr Co.", "northern water co"), _nearly("1998", "2007")
    (True, False)
    """
    said, answer = (" ".join(text.casefold().split()) for text in (said, answer))
    longer = max(len(said), len(answer))
    return longer == 0 or _edits(said, answer) < 0.5 * longer


def _edits(a: str, b: str) -> int:
    """Characters to insert, delete or change from one text to the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, above in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != above))
    return row[-1]


def read_choice(said: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `said` means; None where it names none, or several.

    In this order: a letter at the beginning; the only option whose text is said; a letter in brackets or after "answer
    is" or "option".

    >>> options = ("a dog", "a cat")
    >>> [read_choice(said, options) for said in ("B", "(b) a cat", "The answer is A.", "A cat.", "a cat or a dog", "")]
    ['B', 'B', 'A', 'B', None, None]
    """
    names = letters(len(options))
    text = said.strip()
    if found := re.match(rf"\(?([{names}{names.lower()}])(?:[).:]|$)", text):
        return found[1].upper()
    named = _options_named(plain(text), options)
    if len(named) == 1:
        return names[named[0]]
    found = re.search(rf"(?:\b(?i:answer is|answer:|option)\s*\(?|\()([{names}])\b", text)
    return found[1] if found else None


def _options_named(text: str, options: Sequence[str]) -> list[int]:
    """Options whose text is all of `text`, perhaps after a letter, or else stands in it; of nested ones the longest."""
    names = [plain(option) for option in options]
    marked = [f"{letter.lower()} {name}" for letter, name in zip(letters(len(names)), names, strict=True)]
    exact = [index for index, name in enumerate(names) if name and text in (name, marked[index])]
    if exact:
        return exact
    inside = [index for index, name in enumerate(names) if len(name) > 1 and _has(text, name)]
    return [i for i in inside if not any(i != j and _has(names[j], names[i]) for j in inside)]


def _has(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def plain(text: str) -> str:
    """`text` in lower case, without punctuation, single spaces.

    >>> plain(" The  RED-one. ")
    'the red one'
    """
    return " ".join(_NOISE.sub(" ", text.casefold()).split())
