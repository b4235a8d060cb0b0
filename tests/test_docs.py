"""What the documents say is held against the code."""

import re

import pytest
from conftest import ROOT, composed

from asr.pipeline import Pipeline


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_readme_has_a_line_for_every_room():
    rooms = {path.name for path in (ROOT / "asr").glob("*.py")} - {"__init__.py"}
    assert [room for room in sorted(rooms) if not re.search(rf"^    {re.escape(room)}\s+\w", readme(), re.MULTILINE)] == []


def test_the_readme_names_every_corpus():
    corpora = {path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")}
    assert [corpus for corpus in sorted(corpora) if f"dataset={corpus} " not in readme() and corpus != "spoken_digits"] == []


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", readme(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python launch.py")]


@pytest.mark.parametrize("command", commands())
def test_the_readme_s_commands_compose(command):
    import shlex

    from asr import composition

    asked = composition.read_command_line(shlex.split(command, comments=True)[2:])
    for overrides in {tuple(asked.jobs[0]), tuple(asked.jobs[-1])}:
        Pipeline.of(composed(*overrides))


def test_the_readme_s_commands_are_several():
    assert len(commands()) >= 6


def test_make_targets_are_real():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", readme(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
