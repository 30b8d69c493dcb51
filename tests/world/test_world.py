"""The videos made by code, held to what they are said to be; answers are worked out anew from the words."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp.video import sample_frames
from adatp.world import drawing
from adatp.world.captions import ANY, SIZES, covered, describe, fits, seen, vocabulary
from adatp.world.clips import FRAMES, SHORT, SIDE, Scene, Thing, World, make_clip
from adatp.world.drawing import centre, draw, draw_scene
from adatp.world.files import FPS, SCALE, write_mp4
from adatp.world.questions import ANSWERS, KINDS, Asked, ask_all, ask_orders, choose, with_options
from adatp.world.things import (
    COLOURS,
    CORNERS,
    DIGITS,
    DIRECTIONS,
    NOUNS,
    NUMBERS,
    PLACES,
    SIGN,
    SPLITS,
    TEXTURES,
    owner,
)

clips = st.builds(make_clip, st.sampled_from(SPLITS), st.integers(0, 10**6), st.sampled_from([2, 4, 9, 16, FRAMES]))
few = settings(max_examples=40, deadline=None)


def asked_of(world: World, seed: int = 0) -> list[Asked]:
    return ask_all(world, np.random.default_rng(seed))


class TestClips:
    def test_a_number_is_a_clip(self):
        assert make_clip("train", 5) == make_clip("train", 5)
        assert np.array_equal(draw(make_clip("heldout", 5)), draw(make_clip("heldout", 5)))
        assert len({str(make_clip(split, number)) for split in SPLITS for number in range(20)}) == 60

    @given(clips)
    @few
    def test_scenes(self, world):
        frames = sum(scene.frames for scene in world.scenes)
        assert frames in (2, 4, 9, 16, FRAMES)
        places = [scene.place for scene in world.scenes]
        assert len(set(places)) == len(places)
        for scene in world.scenes:
            assert 1 <= len(scene.things) <= 4
            assert all(0 <= thing.first < thing.last <= scene.frames for thing in scene.things)
            assert all((thing.digit is None) != (thing.noun == SIGN) for thing in scene.things)

    def test_whole_clips_have_three_to_six_scenes_and_often_a_short_one(self):
        worlds = [make_clip("train", number) for number in range(300)]
        assert {len(world.scenes) for world in worlds} == {3, 4, 5, 6}
        short = [sum(scene.is_short for scene in world.scenes) for world in worlds]
        assert set(short) == {0, 1}
        assert 0.4 < np.mean(short) < 0.6
        assert min(scene.frames for world in worlds for scene in world.scenes if not scene.is_short) > SHORT

    @given(clips)
    @few
    def test_no_two_things_overlap(self, world):
        for scene in world.scenes:
            for frame in range(scene.frames):
                boxes = []
                for thing in scene.things:
                    if thing.first <= frame < thing.last:
                        y, x = centre(thing, frame, scene.frames)
                        boxes.append((y - thing.size / 2, x - thing.size / 2, thing.size))
                for i, (y, x, size) in enumerate(boxes):
                    assert all(
                        y + size <= other_y + 1 or other_y + other <= y + 1
                        or x + size <= other_x + 1 or other_x + other <= x + 1
                        for other_y, other_x, other in boxes[:i]
                    )  # fmt: skip

    @given(clips)
    @few
    def test_nothing_leaves_the_frame(self, world):
        for scene in world.scenes:
            for thing in scene.things:
                for frame in range(scene.frames):
                    assert all(10 < place < SIDE - 10 for place in centre(thing, frame, scene.frames))

    @pytest.mark.parametrize("frames", [4, FRAMES])
    def test_splits_differ_in_combinations(self, frames):
        found = {split: set() for split in SPLITS}
        for split in SPLITS:
            for number in range(1500 if frames == 4 else 400):
                world = make_clip(split, number, frames)
                for i, scene in enumerate(world.scenes):
                    own = {owner(thing.noun, thing.colour, scene.place) for thing in scene.things}
                    assert own <= {None, split}
                    # of the splits that are asked about, every scene has something new
                    assert (split in own) == (split != "train") == any(world.is_new(i, thing) for thing in scene.things)
                    found[split] |= {(thing.noun, thing.colour, scene.place) for thing in scene.things}
        assert len(found["train"]) == 384
        new = {split: found[split] - found["train"] for split in SPLITS[1:]}
        assert len(new["validation"]) == len(new["heldout"]) == 64
        assert not new["heldout"] & new["validation"]
        # no two of the three tell the splits apart
        for split in SPLITS:
            for two in ((0, 1), (0, 2), (1, 2)):
                assert len({tuple(one[i] for i in two) for one in found[split]}) == 64

    @pytest.mark.parametrize(
        ("arguments", "said"), [(("test", 0), "split must be"), (("train", 0, 1), "frames must be 2")]
    )
    def test_refused(self, arguments, said):
        with pytest.raises(ValueError, match=said):
            make_clip(*arguments)


def a_thing(**changes) -> Thing:
    return Thing(**{
        "noun": 0, "colour": 0, "texture": 0, "digit": None, "size": 20, "corner": 0, "direction": None,
        "first": 0, "last": 4, "jitter": (0, 0), **changes,
    })  # fmt: skip


def a_scene(*things: Thing, **changes) -> Scene:
    return Scene(**{
        "place": 4, "frames": 4, "things": things, "light": (1.0, 1.0, 1.0), "drift": (0.0, 0.0), "seed": 0, **changes,
    })  # fmt: skip


class TestDrawing:
    @given(clips)
    @settings(max_examples=10, deadline=None)
    def test_frames(self, world):
        frames = draw(world)
        assert frames.shape == (sum(scene.frames for scene in world.scenes), SIDE, SIDE, 3)
        assert frames.dtype == np.uint8

    @pytest.mark.parametrize("colour", range(len(COLOURS)))
    def test_colours(self, colour):
        frames = draw_scene(a_scene(a_thing(colour=colour)), "train").astype(float)
        inside = frames[:, 13:19, 13:19].mean((0, 1, 2))
        assert abs(drawing._PALETTE - inside).sum(1).argmin() == colour

    def test_corners(self):
        for corner, (y, x) in enumerate(((16, 16), (16, 48), (48, 16), (48, 48))):
            frames = draw_scene(a_scene(a_thing(corner=corner, colour=6)), "train").astype(float)
            assert frames[:, y - 3 : y + 3, x - 3 : x + 3].mean() > 230
            for other_y, other_x in {(16, 16), (16, 48), (48, 16), (48, 48)} - {(y, x)}:
                assert frames[:, other_y - 3 : other_y + 3, other_x - 3 : other_x + 3].mean() < 100

    def test_nouns_textures_and_places_look_different(self):
        shapes = [draw_scene(a_scene(a_thing(noun=noun)), "train").astype(float) for noun in range(len(NOUNS) - 1)]
        textures = [draw_scene(a_scene(a_thing(texture=i)), "train").astype(float) for i in range(len(TEXTURES))]
        places = [draw_scene(a_scene(place=place), "train").astype(float) for place in range(len(PLACES))]
        for pictures, least in ((shapes, 1.0), (textures, 1.0), (places, 10.0)):
            for i, picture in enumerate(pictures):
                assert all(abs(picture - other).mean() > least for other in pictures[:i])

    @pytest.mark.parametrize(("corner", "direction", "end"), [(0, 1, 1), (1, 0, 0), (2, 2, 0), (0, 3, 2)])
    def test_what_moves_ends_in_the_next_corner(self, corner, direction, end):
        thing = a_thing(corner=corner, direction=direction)
        assert centre(thing, 0, 7) == centre(a_thing(corner=corner), 0, 7)
        assert centre(thing, 6, 7) == centre(a_thing(corner=end), 0, 7)

    def test_some_frames_are_drawn_as_all_are(self):
        scene = make_clip("train", 3, 9).scenes[0]
        some, whole = draw_scene(scene, "train", [2, 1]).astype(float), draw_scene(scene, "train").astype(float)
        assert abs(some - whole[[2, 1]]).mean() < 8  # noise

    def test_things_come_and_go(self):
        empty = draw_scene(a_scene(), "train").astype(float)
        late = draw_scene(a_scene(a_thing(first=1, last=3)), "train").astype(float)
        assert [abs(a - b).mean() > 2 for a, b in zip(empty, late, strict=True)] == [False, True, True, False]

    def test_light_and_drift(self):
        plain, dark = (draw_scene(a_scene(light=(gain, gain, gain)), "train").astype(float) for gain in (1.0, 0.5))
        assert dark.mean() == pytest.approx(plain.mean() / 2, rel=0.03)
        drifting = draw_scene(a_scene(drift=(0.0, 1.0), place=1), "train").astype(float)
        for i, frame in enumerate(drifting):
            assert abs(np.roll(frame, i, axis=1) - drifting[0]).mean() < 8  # the noise of two frames
        assert abs(drifting[3] - drifting[0]).mean() > 8

    def test_every_split_has_scans_of_its_own(self):
        for digit in range(10):
            scans = {split: {drawing._digit(split, digit, i, 20).tobytes() for i in range(200)} for split in SPLITS}
            assert all(len(own) > 40 for own in scans.values())
            assert not scans["train"] & scans["heldout"]
            assert not scans["validation"] & (scans["train"] | scans["heldout"])


def meant(world: World, words: str) -> list[tuple[int, Thing]]:
    """What "the red star in the desert" may be."""
    noun = next((noun for noun in NOUNS if re.search(rf"\b{noun}\b", words)), None)
    colour = next((colour for colour in COLOURS if re.search(rf"\b{colour}\b", words)), None)
    place = next((place for place in PLACES if f"in the {place}" in words), None)
    return [
        (i, thing)
        for i, scene in enumerate(world.scenes)
        for thing in scene.things
        if place in (None, PLACES[scene.place])
        and noun in (None, NOUNS[thing.noun])
        and colour in (None, COLOURS[thing.colour])
    ]


def answer_of(world: World, text: str) -> str:
    """The answer, from the words of the question and what happens in the clip."""
    if text.startswith("how many"):
        return NUMBERS[len(meant(world, text)) - 1]
    if text.startswith("is "):
        one, other = re.fullmatch(r"is (.*) before or after (.*)\?", text).groups()
        ((i, _),) = meant(world, one)
        if other == "the middle":
            number = [n for n, scene in enumerate(world.scenes) for _ in range(scene.frames)]
            halves = {2 * frame >= len(number) for frame, n in enumerate(number) if n == i}
            assert len(halves) == 1, "a scene in both halves is neither before nor after"
            return "after" if halves.pop() else "before"
        ((j, _),) = meant(world, other)
        return "before" if i < j else "after"
    ((i, thing),) = meant(world, text)
    if text.startswith("what is"):
        return NOUNS[thing.noun]
    return {
        "which colour": lambda: COLOURS[thing.colour],
        "which pattern": lambda: TEXTURES[thing.texture],
        "which digit": lambda: DIGITS[thing.digit[0]],
        "where is": lambda: CORNERS[thing.corner],
        "in which": lambda: PLACES[world.scenes[i].place],
        "which way": lambda: DIRECTIONS[thing.direction],
    }[" ".join(text.split()[:2])]()


class TestQuestions:
    @given(clips, st.integers(0, 1000))
    @few
    def test_answers(self, world, seed):
        for asked in asked_of(world, seed):
            assert asked.answer == answer_of(world, asked.text)
            assert asked.answer in ANSWERS[asked.kind]

    @given(clips, st.integers(0, 1000))
    @few
    def test_more_of_before_and_after(self, world, seed):
        asked = ask_orders(world, np.random.default_rng(seed), 9)
        assert len(asked) <= 9
        assert not asked or len(world.scenes) > 1
        for one in asked:
            assert one.kind == "order"
            assert one.answer == answer_of(world, one.text)

    def test_every_other_one_is_of_the_middle(self):
        asked = ask_orders(make_clip("train", 0), np.random.default_rng(0), 8)
        assert ["the middle" in one.text for one in asked] == [False, True] * 4

    def test_the_answer_is_not_in_the_question(self):
        for number in range(100):
            for asked in asked_of(make_clip("train", number)):
                if asked.kind != "order":
                    assert not re.search(rf"\b{asked.answer}\b", asked.text)

    @given(clips, st.integers(0, 1000))
    @few
    def test_options(self, world, seed):
        rng = np.random.default_rng(seed)
        for asked in asked_of(world, seed):
            own = with_options(asked, world, rng)
            assert len(set(own.options)) == len(own.options) == (2 if asked.kind == "order" else 4)
            assert set(own.options) <= set(ANSWERS[asked.kind])
            assert own.options["ABCD".index(own.said)] == own.answer == asked.said
            assert own.prompt.startswith(f"{asked.text}\nA. {own.options[0]}\nB. ")

    def test_what_occurs_in_the_clip_comes_first_among_the_options(self):
        world = make_clip("train", 0)
        places = {PLACES[scene.place] for scene in world.scenes}
        for asked in asked_of(world):
            if asked.kind == "scene":
                options = set(with_options(asked, world, np.random.default_rng(1)).options)
                assert len(options & places) == min(4, len(places))

    def test_every_kind_has_every_answer_and_none_too_often(self):
        answers = {kind: [] for kind in KINDS}
        for number in range(600):
            world, rng = make_clip("heldout", number), np.random.default_rng(number)
            for asked in choose([asked for asked in ask_all(world, rng) if asked.is_new], 8, rng):
                answers[asked.kind].append(asked.answer)
        total = sum(map(len, answers.values()))
        for kind, given_answers in answers.items():
            assert len(given_answers) > total / 30
            counts = [given_answers.count(answer) for answer in ANSWERS[kind]]
            assert min(counts) > 0
            assert max(counts) < 2.5 * len(given_answers) / len(counts)

    def test_flags(self):
        world = make_clip("heldout", 0)
        for asked in asked_of(world):
            assert asked.is_short == any(world.scenes[i].is_short for i in asked.scenes)
            if asked.kind not in ("count", "order"):
                ((i, thing),) = meant(world, asked.text)
                assert asked.scenes == (i,)
                assert asked.is_new == (owner(thing.noun, thing.colour, world.scenes[i].place) == "heldout")
        assert not any(asked.is_new for asked in asked_of(make_clip("train", 0)))

    def test_choosing_takes_rare_kinds_first(self):
        world, rng = make_clip("train", 1), np.random.default_rng(0)
        asked = ask_all(world, rng)
        kinds = {question.kind for question in asked}
        assert {question.kind for question in choose(asked, len(kinds), rng)} == kinds
        assert len(choose(asked, 10**6, rng)) == len(asked)


class TestCaptions:
    @given(st.integers(0, 10**6))
    @few
    def test_which_texts_are_true_of_what(self, number):
        world, rng = make_clip("train", number, 4), np.random.default_rng(number)
        (scene,) = world.scenes
        for caption in [*vocabulary(), *(describe(world, rng) for _ in range(4))]:
            for i in range(4):
                true = fits(np.array([caption.says]), seen(scene, i)[None])[0, :, 0].tolist()
                for row, thing in enumerate(scene.things):
                    shown = [
                        thing.noun,
                        thing.colour,
                        None if thing.digit else thing.texture,
                        thing.digit[0] if thing.digit else None,
                        thing.corner if thing.direction is None else None,
                        scene.place,
                    ]
                    fit = all(said in (ANY, value) for said, value in zip(caption.says, shown, strict=True))
                    assert true[row] == (fit and thing.first <= i < thing.last)
                assert not any(true[len(scene.things) : 4])
                # the background is a place and no thing
                assert true[4] == (caption.says[:5] == (ANY,) * 5 and caption.says[5] == scene.place)

    def test_texts_and_what_they_say(self):
        names = (NOUNS, COLOURS, TEXTURES, DIGITS, CORNERS, PLACES)
        assert (
            len(vocabulary()) == len({caption.text for caption in vocabulary()}) == sum(map(len, names)) == sum(SIZES)
        )
        for number in range(200):
            world, rng = make_clip("train", number, 4), np.random.default_rng(number)
            for caption in [*vocabulary(), describe(world, rng)]:
                if caption.text.startswith("a "):  # else it is a question
                    for values, said in zip(names, caption.says, strict=True):
                        words = [i for i, value in enumerate(values) if re.search(rf"\b{value}\b", caption.text)]
                        assert words == ([] if said == ANY else [said])

    def test_patches_that_show_a_thing_are_where_it_is(self):
        scene = a_scene(a_thing(corner=3, size=16), a_thing(corner=0, first=2), a_thing(corner=1, direction=0))
        shown = covered(scene, 0, 8).reshape(5, 8, 8)
        assert np.argwhere(shown[0]).tolist() == [[y, x] for y in (5, 6) for x in (5, 6)]
        assert not shown[1].any()
        assert covered(scene, 2, 8)[1].any()
        columns = [np.argwhere(covered(scene, i, 8).reshape(5, 8, 8)[2])[:, 1].mean() for i in range(4)]
        assert columns == sorted(columns, reverse=True)
        assert columns[0] > columns[-1]
        assert shown[4].all()
        assert not shown[3].any()


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path, pyav):
        frames = draw(make_clip("heldout", 3))
        write_mp4(tmp_path / "clip.mp4", frames)
        clip = sample_frames(tmp_path / "clip.mp4", FRAMES)
        assert clip.frames.shape == (FRAMES, SCALE * SIDE, SCALE * SIDE, 3)
        assert clip.note is None
        assert clip.duration == FRAMES / FPS
        small = clip.frames.reshape(FRAMES, SIDE, SCALE, SIDE, SCALE, 3).mean((2, 4))
        assert abs(small - frames).mean() < 4

    @pytest.mark.parametrize("frames", [np.zeros((2, 64, 64), np.uint8), np.zeros((2, 64, 64, 3), np.float32)])
    def test_refused(self, tmp_path, frames):
        with pytest.raises(ValueError, match=r"frames must be \[n, H, W, 3\] uint8"):
            write_mp4(tmp_path / "clip.mp4", frames)
