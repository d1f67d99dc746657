"""A new rule is one file and one line: added to a copy of the package, it is everywhere at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEW_RULE = '''
"""Halves: a rule that exists in a test alone."""

from klora.options import Setting
from klora.rules.rule import Contest, Decides, Numbers, Rule, side_by_side
from klora.schedule import Moment

PART = Setting("halves_part", "number", "Part of halves", 0.5, "A part.", scope="rule", minimum=0, maximum=1)


class Halves(Rule):
    name = "halves"
    help = "Each LoRA by a part."
    source = "a test"
    settings = (PART,)
    decides = Decides.ALL

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        return side_by_side(contest.number("halves_part"), contest.number("halves_part"), contest.layers)


RULE = Halves()
'''

LOOK = """
import json, sys
from klora.hosts.webui import infotext
from klora.hosts.webui.axes import _label
from klora.settings import Settings

settings = Settings(rule="halves", halves_part=0.25)
print(json.dumps({
    "schema": [one.schema() for one in Settings.offered()],
    "axes": [_label(one) for one in Settings.offered()],
    "infotext": infotext.written(settings, None),
    "restored": infotext.restored(Settings.declaration("halves_part"), {"K-LoRA rule": "halves",
                                                                         "K-LoRA halves part": "0.25"}),
}))
"""

METHODS = """
from klora.lab.fronts.methods import method

print(method("halves halves_part=0.125").settings.rule)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the rule in it."""
    folder = tmp_path_factory.mktemp("copy")
    but_weights = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "klora", folder / "klora", ignore=but_weights)
    for file in (ROOT / "klora" / "example_pair").glob("*.safetensors"):
        shutil.copy(file, folder / "klora" / "example_pair")
    (folder / "klora" / "rules" / "halves.py").write_text(NEW_RULE)
    registry = folder / "klora" / "rules" / "registry.py"
    text = registry.read_text()
    changed = text.replace('    "turns",\n', '    "turns",\n    "halves",\n')
    assert len(changed.splitlines()) == len(text.splitlines()) + 1
    registry.write_text(changed)
    return folder


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_it_is_in_page_schema_axes_and_infotext(copy: Path) -> None:
    told = json.loads(run(copy, "-c", LOOK))
    by_name = {one["name"]: one for one in told["schema"]}
    assert "halves" in by_name["rule"]["choices"]
    assert "Each LoRA by a part." in by_name["rule"]["help"]
    assert by_name["halves_part"]["label"] == "Part of halves"
    assert "[K-LoRA] Part of halves" in told["axes"]
    assert told["infotext"]["K-LoRA halves part"] == "0.25"
    assert told["restored"] == 0.25


def test_it_is_on_the_command_line(copy: Path, tmp_path: Path) -> None:
    written = tmp_path / "plan.json"
    run(copy, "-m", "klora", "plan", "--rule", "halves", "--halves-part", "0.25", "--json", str(written))
    told = json.loads(written.read_text())
    assert told["rule"] == "halves"
    assert {share for step in told["shares"] for layer in step for share in layer} <= {0.25, 0.0}


def test_it_is_a_method_of_the_lab(copy: Path) -> None:
    pytest.importorskip("diffusers", reason="the lab needs diffusers: install the extra 'lab'")
    assert run(copy, "-c", METHODS).strip() == "halves"
