"""What is asked about a video: the text by which tokens are chosen before the language model has read anything."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_prune.spans import TurnFormat, find_reply


def question_ids(prompt: Sequence[int], start: int, end: int, turn: TurnFormat) -> list[int]:
    """Token ids of the question about the video at prompt indices start <= i < end; special tokens are left out.

    It is the text between the video and the reply. Where there is none, it is what stands before the video, back to
    the reply before it, and may be empty.

    Args:
        prompt: Token ids, placeholders included.
        start: First placeholder of the video.
        end: Behind its last one.
        turn: How questions end.

    >>> turn = TurnFormat(reply_start=(2, 9), num_more=1, special=(0, 2, 6))
    >>> question_ids([7, 0, 6, 6, 0, 8, 5, 2, 9, 4], 2, 4, turn), question_ids([7, 0, 6, 6, 0, 2, 9, 4], 2, 4, turn)
    ([8, 5], [7])
    """
    header = find_reply(prompt, end, turn)
    asked = _text(prompt[end : len(prompt) if header is None else header], turn)
    return asked or _text(prompt[_last_reply_end(prompt, start, turn) : start], turn)


def question_places(prompt: Sequence[int], behind: Sequence[int], turn: TurnFormat) -> list[int]:
    """Of the prompt indices `behind`, which are text behind a video, increasing, at least one: the question's.

    They are those before the reply that are no special tokens; where there are none, all of `behind`: what stands
    between the question and the reply has read, inside the decoder, whatever was asked before the video.

    >>> turn = TurnFormat(reply_start=(2, 9), num_more=1, special=(0, 2, 6))
    >>> prompt = [7, 0, 6, 6, 0, 8, 5, 2, 9, 4]
    >>> question_places(prompt, [4, 5, 6, 7, 8, 9], turn), question_places(prompt, [4, 7, 8, 9], turn)
    ([5, 6], [4, 7, 8, 9])
    """
    header = find_reply(prompt, behind[0], turn)
    end, special = len(prompt) if header is None else header, set(turn.special)
    return [place for place in behind if place < end and prompt[place] not in special] or list(behind)


def _text(ids: Sequence[int], turn: TurnFormat) -> list[int]:
    special = set(turn.special)
    return [token for token in ids if token not in special]


def _last_reply_end(prompt: Sequence[int], end: int, turn: TurnFormat) -> int:
    """Behind the header of the last reply before `end`; 0 if there is none."""
    length = len(turn.reply_start)
    for index in range(end - length, -1, -1):
        if prompt[index] == turn.reply_start[0] and tuple(prompt[index : index + length]) == turn.reply_start:
            return index + length
    return 0
