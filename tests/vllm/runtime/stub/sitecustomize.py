"""Lets torchvision be imported where its build is for CUDA and PyTorch's is not: declares two of its operators.

vLLM imports torchvision. Python imports this module at its start, in every process of the tests.
"""

from importlib.util import find_spec

if find_spec("torch"):
    import torch

    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
