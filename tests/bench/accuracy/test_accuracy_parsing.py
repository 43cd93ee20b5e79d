"""What a model said, and what it means."""

import pytest
from accuracy_cases import question

from vllm_prune.bench.accuracy.parsing import judge, read_choice
from vllm_prune.bench.accuracy.questions import INSTRUCTION, letters

ANIMALS = ("a dog", "a cat", "a dog and a cat", "3 birds")


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("A", "A"),
        ("b", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("B) a cat", "B"),
        ("B: because it meows", "B"),
        ("  C.\n", "C"),
        ("The answer is B.", "B"),
        ("The correct answer is (B).", "B"),
        ("Answer: C", "C"),
        ("I would choose option D", "D"),
        ("Surely (A), not (B)", "A"),
        ("a cat", "B"),
        ("A cat.", "B"),
        ("It is a dog and a cat, I think", "C"),
        ("3 Birds!", "D"),
        ("the answer is a cat", "B"),
        ("a cat or else 3 birds", None),
        ("A man rides a horse", None),
        ("E", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_choices(said, choice):
    assert read_choice(said, ANIMALS) == choice


def test_a_letter_of_too_few_options_is_none():
    assert read_choice("C", ("yes", "no")) is None


def test_options_that_are_letters_or_numbers():
    assert read_choice("2", ("1", "2")) == "B"
    assert read_choice("12", ("1", "2")) is None


@pytest.mark.parametrize(
    ("said", "right"),
    [("red", True), (" Red.", True), ("red, I think", True), ("reddish", False), ("the red one", False), ("", False)],
)
def test_words(said, right):
    assert judge(question(answer="red"), said)[1] is right


def test_judging_tells_what_was_said():
    assert judge(question(answer="red"), "Blue.") == ("blue", False)
    assert judge(question(answer="red"), "") == (None, False)
    assert judge(question(answer="B", options=ANIMALS), "A cat") == ("B", True)
    assert judge(question(answer="B", options=ANIMALS), "dunno") == (None, False)


def test_prompt_has_options_and_instruction():
    asked = question(text="Which?", options=("x", "y"), answer="A")
    assert asked.prompt() == f"Which?\nA. x\nB. y\n{INSTRUCTION}"
    assert question(text="Which?").prompt() == "Which?"


def test_no_question_has_one_option():
    with pytest.raises(ValueError, match="1 options"):
        letters(1)
