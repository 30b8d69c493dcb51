import time

import torch
from torch import nn

from adatp.hf.stopwatch import FirstToken, Stopwatch


class Sleep(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self):
        time.sleep(self.seconds)


def test_a_stage_is_the_sum_of_its_modules_first_runs():
    first, second, other = Sleep(0.02), Sleep(0.01), Sleep(0.0)
    with Stopwatch({"both": [first, second], "other": [other], "none": []}) as watch:
        for module in (first, second, other):
            module()
        first.seconds = 0.5
        first()
    assert 0.03 <= watch.seconds["both"] < 0.5, "the second run is not counted"
    assert 0 < watch.seconds["other"] < watch.seconds["both"]
    assert watch.seconds["none"] == 0


def test_nothing_stays_behind():
    module = Sleep(0.0)
    with Stopwatch({"stage": [module]}):
        assert module._forward_pre_hooks
    assert not module._forward_pre_hooks
    assert not module._forward_hooks


def test_the_first_token_is_the_second_thing_a_streamer_gets():
    first = FirstToken()
    first.put(torch.zeros(1, 5))
    assert first.at is None, "that was the prompt"
    first.put(torch.zeros(1))
    at = first.at
    first.put(torch.zeros(1))
    first.end()
    assert at is not None
    assert first.at == at
