"""A WebUI as a server, for as long as the tests need it, and a client that speaks its API."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

BOOT_SECONDS = 900  # half a minute on an idle machine
JOB_SECONDS = 900
STARTED = "Startup time:"
"""What every WebUI writes when it is up, and again after each reload of its UI."""


@dataclass(frozen=True)
class Answer:
    """The pictures of a job as hashes of their pixels, the first as bytes, and the infotexts."""

    pixels: tuple[str, ...]
    raw: bytes
    infotexts: tuple[str, ...]
    size: tuple[int, int]

    def distance(self, other: Answer) -> int:
        """The largest difference between the two first pictures in a channel of a pixel, 0 to 255."""
        return max(abs(a - b) for a, b in zip(self.raw, other.raw, strict=True))

    def mean_distance(self, other: Answer) -> float:
        """The mean difference between the two first pictures, 0 to 255."""
        return sum(abs(a - b) for a, b in zip(self.raw, other.raw, strict=True)) / len(self.raw)


class NoPictureError(Exception):
    """A job was answered, but without a picture."""


class RefusedError(Exception):
    """The API refused a job; ``status`` and ``text`` are its answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class WebUI:
    """A running WebUI. Every job is small and seeded; ``extra`` is what this host wants in each."""

    def __init__(
        self, address: str, extra: Mapping[str, Any] | None = None, credentials: str | None = None
    ) -> None:
        """``credentials``: ``name:word``, as ``--api-auth`` takes them."""
        self.address = address
        self._extra = dict(extra or {})
        self.credentials = credentials

    def call(self, path: str, body: object | None = None) -> Any:
        """GET, or POST if there is a body; raises `RefusedError` with the API's own text."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.credentials is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(self.credentials.encode()).decode()
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=JOB_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RefusedError(error.code, error.read().decode()) from error

    def txt2img(self, prompt: str, klora: dict[str, Any] | None = None, **request: Any) -> Answer:
        """Make pictures from a prompt, with K-LoRA if settings are given."""
        return self._pictures("/sdapi/v1/txt2img", prompt, klora, request)

    def img2img(self, prompt: str, klora: dict[str, Any] | None = None, **request: Any) -> Answer:
        """Make pictures from ``init``, the answer of an earlier job."""
        init: Answer = request.pop("init")
        request["init_images"] = [as_text(Image.frombytes("RGB", init.size, init.raw))]
        return self._pictures("/sdapi/v1/img2img", prompt, klora, request)

    def _pictures(
        self, path: str, prompt: str, klora: dict[str, Any] | None, request: dict[str, Any]
    ) -> Answer:
        body: dict[str, Any] = {
            "prompt": prompt,
            "steps": 6,
            "width": 64,
            "height": 64,
            "seed": 7,
            "cfg_scale": 7,
            "sampler_name": "Euler a",
            "scheduler": "Automatic",
            **self._extra,
            **request,
        }
        if klora is not None:
            body["alwayson_scripts"] = {**body.get("alwayson_scripts", {}), "K-LoRA": {"args": [klora]}}
        answer = self.call(path, body)
        pictures = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in answer["images"]]
        raws = [one.tobytes() for one in pictures]
        texts = json.loads(answer["info"])["infotexts"]
        hashes = tuple(hashlib.sha256(raw).hexdigest() for raw in raws)
        if not pictures:  # two of these would pass for the same picture
            raise NoPictureError("the job gave no picture, as if it was interrupted before its first")
        return Answer(hashes, raws[0], tuple(texts), pictures[0].size)

    def options(self, **options: Any) -> None:
        """Set the WebUI's options."""
        self.call("/sdapi/v1/options", options)


def left_half(size: tuple[int, int]) -> str:
    """A mask for inpainting the left half, as the API takes it."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return as_text(mask)


def as_text(picture: Image.Image) -> str:
    """A picture as the API takes it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


def start(
    python: str,
    root: Path,
    flags: list[str],
    log: Path,
    port: int,
    more_environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``launch.py`` and wait until the API answers; raises RuntimeError if it does not.

    Nothing is asked before the WebUI says that it is up: AUTOMATIC1111 does not come up with its page if
    somebody asks while it builds its API.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    environment.update(more_environment or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "launch.py", "--port", str(port), *flags],
            cwd=root,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if STARTED not in log.read_text(errors="replace"):
            time.sleep(0.5)
            continue
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/sdapi/v1/options", timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it answers, and wants credentials
                return process
            time.sleep(0.5)
        except OSError:
            time.sleep(0.5)
        else:
            return process
    process.kill()
    raise RuntimeError(f"The WebUI did not start:\n{log.read_text(errors='replace')[-4000:]}")
