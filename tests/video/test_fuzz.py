"""A short run of the fuzzer; `make fuzz` runs a long one."""

from fuzz_video import CONTAINERS, case, clips, fuzz

from adatp.video import sample_frames


def test_hostile_files_end_in_a_clip_or_an_error(bikes):
    found = fuzz(bikes, files=200, minutes=2)
    assert found["failures"] == []
    assert found["files"] == 200
    assert set(found["outcomes"]) == {"clip", "refused"}


def test_what_it_starts_from_is_whole(bikes, tmp_path):
    originals = clips(bikes)
    for name in CONTAINERS:
        (tmp_path / name).write_bytes(originals[name])
        clip = sample_frames(tmp_path / name, 8)
        assert (clip.total, clip.note) == (24, None), name


def test_a_number_stands_for_one_file(bikes):
    originals = clips(bikes)
    made = [case(number, originals) for number in range(300)]
    assert made == [case(number, originals) for number in range(300)]
    assert len({data for _, data in made}) > 290
