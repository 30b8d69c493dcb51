import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp.errors import InputError
from adatp.evaluation.questions import Question, load_questions

CHOICE = {"video": "a.mp4", "question": "Who rides by?", "options": ["A child", "A cyclist"], "answer": "B"}
OPEN = {"video": "clips/b.mp4", "question": " What colour is it? ", "answer": "Green"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "clips/b.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, entries, lines=False):
    path = folder / "questions.json"
    text = "\n".join(map(json.dumps, entries)) + "\n" if lines else json.dumps(entries)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_a_list_or_an_object_a_line(folder, lines):
    assert load_questions(write(folder, [CHOICE, OPEN], lines)) == [
        Question(folder / "a.mp4", "Who rides by?", ("A child", "A cyclist"), "B"),
        Question(folder / "clips/b.mp4", "What colour is it?", (), "Green"),
    ]


def test_empty_lines_and_a_byte_order_mark_are_nothing(folder):
    path = folder / "questions.jsonl"
    path.write_text(f"\ufeff{json.dumps(CHOICE)}\n\n  \n{json.dumps(OPEN)}", encoding="utf-8")
    assert len(load_questions(path)) == 2


def test_the_prompt_is_lmms_evals(folder):
    choice, free = load_questions(write(folder, [CHOICE, OPEN]))
    assert choice.prompt == (
        "Who rides by?\nA. A child\nB. A cyclist\nAnswer with the option's letter from the given choices directly."
    )
    assert choice.letters == "AB"
    assert free.prompt == "What colour is it?"


@pytest.mark.parametrize("answer", ["B", "b", "B.", "A cyclist", " a  CYCLIST ", "B. A cyclist"])
def test_an_answer_is_the_letter_or_the_text(folder, answer):
    assert load_questions(write(folder, [{**CHOICE, "answer": answer}]))[0].answer == "B"


def test_options_that_bring_their_letters(folder):
    entry = {**CHOICE, "options": ["A. A child", "B. A cyclist"], "answer": "A cyclist"}
    (question,) = load_questions(write(folder, [entry]))
    assert question.options == ("A child", "A cyclist")
    assert question.answer == "B"


@pytest.mark.parametrize("options", [["A. Child", "A. Cyclist"], ["A. Child", "Cyclist"]])
def test_options_whose_letters_are_others_are_left_alone(folder, options):
    (question,) = load_questions(write(folder, [{**CHOICE, "options": options}]))
    assert question.options == tuple(options)


@pytest.mark.parametrize("left_out", [("answer",), ("options", "answer")])
def test_options_and_answer_may_be_left_out_or_null(folder, left_out):
    missing = {key: value for key, value in CHOICE.items() if key not in left_out}
    for entry in (missing, {**missing, **dict.fromkeys(left_out)}):
        (question,) = load_questions(write(folder, [entry]))
        assert question.answer is None
        assert bool(question.options) == ("options" not in left_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "none.mp4"}, r"video '.*none\.mp4' is not a file"),
        ({"video": "clips"}, r"video '.*clips' is not a file"),
        ({"question": "  "}, "question must be valid text that is not empty, got '  '"),
        ({"question": 3}, "question must be valid text that is not empty, got 3"),
        ({"answer": "C"}, r"answer 'C' is neither the letter nor the text of one of the options \['A child'"),
        ({"answer": "A child or two"}, "answer 'A child or two' is neither"),
        ({"answer": 1}, "answer must be valid text that is not empty, got 1"),
        ({"options": ["B", "A"], "answer": "A"}, "answer 'A' means two of the options"),
        ({"options": "ab"}, "options must be a list of valid texts that are not empty, got 'ab'"),
        ({"options": ["x", ""]}, "options must be a list of valid texts"),
        ({"options": ["x"]}, "options must be 2 to 26, got"),
        ({"options": [str(i) for i in range(27)]}, "options must be 2 to 26, got"),
        ({"options": ["x", "y", "X "]}, "options must be all different"),
        ({"anwser": "B"}, "has an unknown key 'anwser'; the known keys are video, question, options, answer"),
    ],
)
def test_what_is_wrong_with_an_entry(folder, change, message):
    with pytest.raises(ValueError, match=f"entry 2: {message}"):
        load_questions(write(folder, [OPEN, {**CHOICE, **change}]))


def test_all_that_is_wrong_is_told_at_once(folder):
    path = write(folder, [{"question": "?"}, OPEN, {"video": "none.mp4"}, 7])
    with pytest.raises(ValueError, match="cannot be used") as error:
        load_questions(path)
    assert str(error.value).splitlines() == [
        f"{path} cannot be used:",
        "  entry 1: has no 'video'",
        f"  entry 3: video {str(folder / 'none.mp4')!r} is not a file",
        "  entry 3: has no 'question'",
        "  entry 4: must be an object with video, question, got 7",
    ]


def test_lines_that_are_no_json(folder):
    path = folder / "questions.jsonl"
    path.write_text(f"{json.dumps(CHOICE)}\n{{'video'}}\n{json.dumps({**CHOICE, 'answer': 'D'})}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"(?s)line 2: is not valid JSON.*line 3: answer 'D'"):
        load_questions(path)
    path.write_text("[1,", encoding="utf-8")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_questions(path)


@pytest.mark.parametrize("text", ["", "[]", "\n\n"])
def test_a_set_without_a_question(folder, text):
    (folder / "empty.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="holds no question"):
        load_questions(folder / "empty.json")


def test_a_missing_file(folder):
    with pytest.raises(OSError, match=r"none\.json"):
        load_questions(folder / "none.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe[]", "must be text in UTF-8"),
        (b"[" * 100_000, "is not valid JSON: maximum recursion depth"),
        (b"[" + b"9" * 5000 + b"]", "is not valid JSON: Exceeds the limit"),
        (b'{"video": ' + b"9" * 5000 + b"}", "line 1: is not valid JSON"),
        (b'{"video": "a.mp4", "question": "Who?", "question": "What?"}', "line 1: has the key 'question' twice"),
        (b'{"video": "a.mp4", "question": "\\ud800"}', r"question must be valid text that is not empty, got '\\ud800'"),
        (b'{"video": "a\\u0000b", "question": "Who?"}', r"video '.*a\\x00b' is not a file"),
        (b'{"video": "%s", "question": "Who?"}' % (b"x" * 5000), "video '.*x' is not a file"),
        (b'{"video": "a.mp4", "question": "Who?", "answer": 1e999}', "answer must be valid text .*, got inf"),
        (b'{"video": "a.mp4", "question": "Who?", "\\ud800": 1}', r"has an unknown key '\\ud800'"),
        (b"3", "must be an object with video, question, got 3"),
        (b"NaN", "must be an object with video, question, got nan"),
    ],
    ids=range(12),
)
def test_hostile_files(folder, text, message):
    (folder / "questions.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        load_questions(folder / "questions.json")


ODD = ["", " ", "A", "B", "A. x", "a child", "\ud800", "a.mp4", "..", "/"]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=4))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {"video": st.one_of(st.just("a.mp4"), VALUES), "question": st.one_of(st.just("Who?"), VALUES)},
    optional={"options": st.one_of(st.just(["A child", "A cyclist"]), VALUES), "answer": VALUES, "other": VALUES},
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.one_of(ENTRIES, VALUES), max_size=3))
def test_any_json_is_read_or_refused(tmp_path_factory, entries):
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.mp4").touch()
    try:
        questions = load_questions(write(folder, entries))
    except InputError:
        return
    assert len(questions) == len(entries)
    assert all(question.prompt.encode() for question in questions)
