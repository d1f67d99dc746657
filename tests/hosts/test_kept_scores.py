"""Scores on disk and the guards of the routes, on the real WebUIs, each started as often as needed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.server import RefusedError
from tests.hosts.soak.places import HOSTS, Opener
from tests.hosts.test_a1111 import CONTENT, PAIR
from tests.published import PUBLISHED

FUSED: dict[str, Any] = {**PUBLISHED, "other_layers": "fuse"}


@pytest.fixture(params=HOSTS)
def opened(request: pytest.FixtureRequest) -> Opener:
    """Each WebUI in turn."""
    if request.param == "a1111" and not os.environ.get("KLORA_A1111"):
        pytest.skip("set KLORA_A1111 to the folder of an installed AUTOMATIC1111 to run the tests on it")
    return HOSTS[request.param]


def kept(data: Path) -> dict[Path, Any]:
    """The scores in a WebUI's data folder that are whole, by file."""
    found = {}
    for path in (data / "cache" / "klora").glob("*.json"):
        checksum, _, body = path.read_bytes().partition(b"\n")
        if checksum == _checksum(path, body) and "measured" in (told := json.loads(body)):
            found[path] = told
    return found


def _checksum(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(path.stem.encode() + body).hexdigest().encode()


def let_content_win(path: Path, told: dict[str, Any]) -> None:
    """Rewrite scores so that a restarted WebUI that uses them makes another picture than its own."""
    sums = told["measured"]["top-k sum"]
    told["measured"]["top-k sum"] = [[1e9 * content, style] for content, style in sums]
    body = json.dumps(told).encode()
    path.write_bytes(_checksum(path, body) + b"\n" + body)


def test_scores_outlive_a_restart(opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLORA_CACHE", raising=False)
    data = tmp_path / "data"
    with opened(tmp_path, None) as place:
        fused, alone = place.webui.txt2img(PAIR, FUSED), place.webui.txt2img(f"a cat {CONTENT}")
    (path,) = scores = kept(data)
    assert fused.pixels != alone.pixels
    let_content_win(path, scores[path])
    with opened(tmp_path, None) as place:  # it believes what it finds
        assert place.webui.txt2img(PAIR, FUSED).pixels == alone.pixels
    path.write_bytes(path.read_bytes()[:-20])
    assert not kept(data)
    with opened(tmp_path, None) as place:  # but for a torn file, which it writes anew
        assert place.webui.txt2img(PAIR, FUSED).pixels == fused.pixels
    assert set(kept(data)) == {path}


def test_the_routes_ask_for_the_api_s_credentials(opened: Opener, tmp_path: Path) -> None:
    with opened(tmp_path, None, credentials="fox:den") as place:
        webui = place.webui
        pair = {"content": "content-sd1-a", "style": "style-sd1-a", "steps": 4}
        asked: dict[str, Any] = {"version": None, "schema": None, "plan": pair, "report": pair}
        answers = {name: webui.call(f"/klora/v1/{name}", body) for name, body in asked.items()}
        assert len(answers["plan"]["layers"]) > 0
        assert str(tmp_path) not in json.dumps(answers)
        for credentials in (None, "fox:hole"):
            webui.credentials = credentials
            for name, body in asked.items():
                with pytest.raises(RefusedError) as refused:
                    webui.call(f"/klora/v1/{name}", body)
                assert refused.value.status == 401


def test_a_request_is_bounded_and_no_answer_holds_a_path(opened: Opener, tmp_path: Path) -> None:
    with opened(tmp_path, None) as place:
        webui = place.webui
        pair = {"content": "content-sd1-a", "style": "style-sd1-a", "steps": 4}
        for change, status, sentence in (
            ({"steps": 100_000}, 422, "write a whole number from 1 to 1000"),
            ({"content": str(place.loras / "content-sd1-a.safetensors")}, 422, "not a path"),
            ({"content": "x" * 200_000}, 413, "at most"),
            ({"alhpa": 1}, 422, "alhpa"),
        ):
            with pytest.raises(RefusedError, match=sentence) as refused:
                webui.call("/klora/v1/plan", {**pair, **change})
            assert refused.value.status == status
        damaged = place.loras / "damaged.safetensors"
        damaged.write_bytes((place.loras / "content-sd1-a.safetensors").read_bytes()[:5000])
        try:
            with pytest.raises(RefusedError, match="damaged") as refused:
                webui.call("/klora/v1/plan", {**pair, "content": "damaged"})
        finally:
            damaged.unlink()
        assert str(place.loras.parent) not in refused.value.text
