"""Writes a YOLO of random numbers: ``make_detector.py FILE``. Run by a Python that has ultralytics."""

from __future__ import annotations

import sys

import torch
from ultralytics import YOLO

if __name__ == "__main__":
    torch.manual_seed(1)
    YOLO("yolov8n.yaml").save(sys.argv[1])
