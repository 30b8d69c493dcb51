"""The number of segments at a threshold, and the threshold for a number, held to `partition`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatp.errors import InputError
from adatp.evaluation.calibration import cosines_of, count_segments, default_segments, find_tau, quantiles
from adatp.methods import AdaTP
from adatp.methods.segments import partition


def turned(*degrees):
    """`[n, 2]` features that each point this much further than the one before."""
    angles = torch.tensor([0.0, *degrees], dtype=torch.float64).cumsum(0).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


class TestByHand:
    def test_cosines_are_sorted(self):
        assert cosines_of(turned(60, 0, 90)).tolist() == pytest.approx([0, 0.5, 1])

    def test_nothing_like_a_number_is_the_lowest(self):
        features = turned(60, 0)
        features[0] = torch.nan
        cosines = cosines_of(features)
        assert cosines.tolist() == [-torch.inf, 1]
        assert [count_segments(cosines, tau) for tau in (-1, 1)] == [2, 2]
        assert quantiles(cosines) == [1] * 7

    def test_segments_of_a_video(self):
        cosines = cosines_of(turned(60, 30, 90))
        assert [count_segments(cosines, tau) for tau in (-1, 0.3, 0.6, 0.95)] == [1, 2, 3, 4]
        assert count_segments(cosines_of(turned()), 0.95) == 1

    def test_quantiles(self):
        assert quantiles(torch.arange(101, dtype=torch.float64) / 100) == pytest.approx(
            [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
        )
        assert quantiles(torch.zeros(0, dtype=torch.float64)) is None

    @pytest.mark.parametrize(("wanted", "tau", "segments"), [(1, -0.5, 1), (2, 0.25, 2), (3, 0.68, 3), (4, 0.93, 4)])
    def test_a_threshold_in_the_middle(self, wanted, tau, segments):
        assert find_tau([cosines_of(turned(60, 30, 90))], wanted) == (tau, segments)

    def test_a_narrow_gap_takes_more_decimals(self):
        cosines = cosines_of(turned(0.5, 0.6, 0.7))  # 0.99996, 0.99995, 0.99993
        assert [find_tau([cosines], wanted) for wanted in (2, 3)] == [(0.99994, 2), (0.99995, 3)]

    def test_a_cosine_below_the_lowest_threshold(self):
        """Rounding makes such."""
        assert find_tau([torch.tensor([-1 - 2**-52, 0.5], dtype=torch.float64)], 1) == (-0.25, 2)

    def test_more_than_there_are_frames(self):
        assert find_tau([cosines_of(turned(60, 60))], 100).segments == 3

    def test_equal_frames_are_never_parted(self):
        assert find_tau([cosines_of(turned(60, 0, 0))], 4) == (0.75, 2)

    def test_ties_jump_to_the_nearest_and_of_two_to_the_smaller(self):
        cosines = cosines_of(turned(60, 60, 60, 60))
        ties = [torch.full_like(cosines, 0.5)]
        assert [find_tau(ties, wanted).segments for wanted in (2, 3, 3.1, 4)] == [1, 1, 5, 5]

    def test_the_mean_of_several_videos(self):
        videos = [cosines_of(turned(60, 60)), cosines_of(turned(30)), cosines_of(turned())]
        found = find_tau(videos, 5 / 3)
        assert found.segments == 5
        assert 0.5 < found.tau_s < 0.866

    def test_what_is_wanted_by_default(self):
        assert default_segments([torch.zeros(31), torch.zeros(15)]) == 6
        assert default_segments([torch.zeros(1)]) == 1

    @pytest.mark.parametrize("wanted", [0, 0.99, -1, torch.nan, torch.inf])
    def test_numbers_that_no_video_can_have(self, wanted):
        with pytest.raises(InputError, match="segments must be a number of at least 1"):
            find_tau([cosines_of(turned(60))], wanted)

    def test_videos_of_one_frame(self):
        with pytest.raises(InputError, match="no video has two frames"):
            find_tau([cosines_of(turned())], 1)


VALUE = st.one_of(
    st.sampled_from([-1.0, 0.0, 0.5, 1.0, float("nan")]), st.floats(-2, 2, allow_subnormal=False, width=32)
)
VIDEO = st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=8).map(
    lambda frames: torch.tensor(frames, dtype=torch.float64)
)
VIDEOS = st.lists(VIDEO, min_size=1, max_size=4).filter(lambda videos: any(len(video) > 1 for video in videos))


def segments(videos, tau):
    return sum(int(partition(video, tau)[-1]) + 1 for video in videos)


@given(VIDEO, st.floats(-1, 1))
def test_counts_are_those_of_partition(video, tau):
    assert count_segments(cosines_of(video), tau) == segments([video], tau)


@given(VIDEOS, st.floats(1, 10))
def test_the_threshold_gives_the_nearest_number_that_can_be_reached(videos, wanted):
    cosines = [cosines_of(video) for video in videos]
    found = find_tau(cosines, wanted)
    AdaTP(tau_s=found.tau_s)
    assert segments(videos, found.tau_s) == found.segments
    every = torch.cat(cosines)
    ends = [-1.0, 1.0, *every[(every >= -1) & (every <= 1)].tolist()]
    ends += [torch.tensor(end, dtype=torch.float64).nextafter(torch.tensor(2.0)).item() for end in ends]
    reachable = {segments(videos, tau) for tau in ends if -1 <= tau <= 1}
    distance = {count: abs(count - wanted * len(videos)) for count in reachable}
    assert found.segments in reachable
    assert distance[found.segments] == pytest.approx(min(distance.values()), abs=1e-9)
