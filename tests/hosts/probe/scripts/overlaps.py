"""Gives torchvision an ``nms`` where it was installed without its compiled part, for detectors of faces."""

from __future__ import annotations

import torch
import torchvision
from torchvision.extension import _has_ops


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The places of the boxes to keep, best first; of two that overlap by more, the worse one goes."""
    left, kept = scores.argsort(descending=True), []
    while len(left):
        kept.append(left[0])
        overlap = torchvision.ops.box_iou(boxes[left[:1]], boxes[left])[0]
        left = left[1:][overlap[1:] <= iou_threshold]
    return torch.stack(kept) if kept else left


if not _has_ops():
    torchvision.ops.nms = nms
