"""Questions about videos from a file, with or without answers.

The file holds a JSON list, or one JSON object on each line:

    {"video": "street.mp4", "question": "Who rides by?", "options": ["A child", "A cyclist"], "answer": "B"}

`video` is a path relative to the file. `options` and `answer` may be left out. With options, the answer is the letter
or the text of one option. Letters in front of the options ("A. A child", ...) are removed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from adatp.checks.values import is_encodable, shown
from adatp.errors import InputError
from adatp.world.multiple_choice import prompt_of

KEYS = ("video", "question", "options", "answer")
_TEXT = "valid text that is not empty"
_NO_JSON = (ValueError, RecursionError)  # the one also for numbers of thousands of digits, the other for deep nesting


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        video: path of an existing file.
        text: the question.
        options: the options, without letters; empty for a free answer.
        answer: the right option's letter, or the free answer; None if it is not known.
    """

    video: Path
    text: str
    options: tuple[str, ...] = ()
    answer: str | None = None

    @property
    def letters(self) -> str:
        """A letter for each option."""
        return ascii_uppercase[: len(self.options)]

    @property
    def prompt(self) -> str:
        """The text for the model: the question, and the options if it has any."""
        return prompt_of(self.text, self.options)


def load_questions(path: Path) -> list[Question]:
    """Read a question set.

    Raises:
        InputError: some entries cannot be used (the message lists each with its problem), or there is no entry.
        OSError: the file cannot be read.
    """
    questions: list[Question] = []
    problems: list[str] = []
    for name, entry in _entries(path, problems):
        wrong = _problems(entry, path.parent)
        problems += [f"{name}: {problem}" for problem in wrong]
        if not wrong:
            questions.append(_question(entry, path.parent))
    if problems:
        raise InputError(f"{path} cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    if not questions:
        raise InputError(f"{path} holds no question; it must hold at least one")
    return questions


def _entries(path: Path, problems: list[str]) -> list[tuple[str, Any]]:
    """Return the name and the content of each entry. Add each line that is not JSON to the problems."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be text in UTF-8: {error}") from error
    if text.lstrip().startswith("["):
        try:
            return [(f"entry {i}", entry) for i, entry in enumerate(_parsed(text), 1)]
        except _NO_JSON as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
    entries = []
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append((f"line {i}", _parsed(line)))
            except _NO_JSON as error:
                problems.append(f"line {i}: is not valid JSON: {error}")
    return entries


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Entry)


class _Entry(dict[str, Any]):
    """A JSON object. The last value of a key that is given twice stands, as in `dict`.

    Attributes:
        twice: keys that are given more than once.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = [key for key in self if keys.count(key) > 1]


def _problems(entry: Any, folder: Path) -> list[str]:
    """Return the problems of an entry."""
    if not isinstance(entry, _Entry):
        return [f"must be an object with {', '.join(KEYS[:2])}, got {shown(entry)}"]
    problems = [
        f"has an unknown key {shown(key)}; the known keys are {', '.join(KEYS)}" for key in entry if key not in KEYS
    ]
    problems += [f"has the key {shown(key)} twice" for key in entry.twice]
    for key in KEYS[:2]:
        if key not in entry:
            problems.append(f"has no {key!r}")
        elif not _is_text(entry[key]):
            problems.append(f"{key} must be {_TEXT}, got {shown(entry[key])}")
        elif key == "video" and not os.path.isfile(folder / entry[key]):
            problems.append(f"video {str(folder / entry[key])!r} is not a file")
    options, answer = entry.get("options"), entry.get("answer")
    if answer is not None and not _is_text(answer):
        problems.append(f"answer must be {_TEXT}, got {shown(answer)}")
    if options is not None:
        fault = _options_fault(options)
        if fault:
            problems.append(f"options must be {fault}, got {shown(options)}")
        elif isinstance(answer, str):
            meant = _meant(answer, _bare(options))
            if len(meant) != 1:
                found = "means two of" if meant else "is neither the letter nor the text of one of"
                problems.append(f"answer {shown(answer)} {found} the options {shown(options)}")
    return problems


def _options_fault(options: Any) -> str | None:
    """Return what the options must be, or None if they can be used."""
    if not isinstance(options, list) or not all(map(_is_text, options)):
        return "a list of valid texts that are not empty"
    if not 2 <= len(options) <= len(ascii_uppercase):
        return f"2 to {len(ascii_uppercase)}"
    return None if len({*map(_plain, _bare(options))}) == len(options) else "all different"


def _question(entry: dict[str, Any], folder: Path) -> Question:
    options, answer = _bare(entry.get("options") or []), entry.get("answer")
    if options and answer is not None:
        (answer,) = _meant(answer, options)
    return Question(folder / entry["video"], entry["question"].strip(), tuple(options), answer)


def _bare(options: list[str]) -> list[str]:
    """Return the options without their letters, if every option begins with its own letter."""
    own = [f"{letter}." for letter in ascii_uppercase]
    if all(option.startswith(letter) and option[2:].strip() for option, letter in zip(options, own, strict=False)):
        options = [option[2:] for option in options]
    return [option.strip() for option in options]


def _meant(answer: str, options: list[str]) -> set[str]:
    """Return the letters of the options that an answer may mean."""
    letters = ascii_uppercase[: len(options)]
    given = {letter for letter, option in zip(letters, options, strict=True) if _plain(option) == _plain(answer)}
    lettered = {  # VideoMME's answers may be whole options, with the letter
        letter
        for letter, option in zip(letters, options, strict=True)
        if answer.strip().rstrip(".").upper() == letter or _plain(answer) == _plain(f"{letter}. {option}")
    }
    return given | lettered


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_encodable(value)
