"""What the documents say is held against the code; tests/e2e/test_documents.py runs their commands."""

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
    said = readme() + (ROOT / "docs" / "corpora.md").read_text()
    assert [corpus for corpus in sorted(corpora) if f"dataset={corpus} " not in said and corpus != "spoken_digits"] == []


def commands(text: str, program: str = "python launch.py") -> list[str]:
    """Return the lines of a document's shell blocks that start a program."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(program)]


def pages() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


@pytest.mark.parametrize("command", commands(readme()))
def test_the_readme_s_commands_compose(command):
    import shlex

    from asr import command_line

    asked = command_line.read_command_line(shlex.split(command, comments=True)[2:])
    for overrides in {tuple(asked.jobs[0]), tuple(asked.jobs[-1])}:
        Pipeline.of(composed(*overrides))


def test_the_readme_s_commands_are_several():
    assert len(commands(readme())) >= 6


def test_make_targets_are_real():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", readme(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_pages_name_commands_of_asr_that_there_are():
    import typer

    from asr.cli import commands as app

    there = set(typer.main.get_command(app).commands)
    named = [(page, line) for page, text in {**pages(), "README.md": readme()}.items() for line in commands(text, "asr ")]
    assert len(named) > 5
    assert [line for _, line in named if not line.split()[1].startswith("-") and line.split()[1] not in there] == []


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(pages())


def test_links_between_pages_lead_somewhere():
    broken = []
    for name, text in {**{f"docs/{page}": text for page, text in pages().items()}, "README.md": readme()}.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (ROOT / name).parent.joinpath(target).exists():
                broken.append((name, target))
    assert broken == []


@pytest.mark.slow
def test_a_source_of_one_s_own_works_as_its_page_says(launch, tmp_path):
    import shlex

    import numpy as np
    import soundfile

    text = pages()["extending.md"]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "our_corpus.py").write_text(code)
    (tmp_path / "team" / "dataset").mkdir(parents=True)
    calls = tmp_path / "calls" / "support"
    calls.mkdir(parents=True)
    yaml = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1].replace("/data/calls", str(tmp_path / "calls"))
    (tmp_path / "team" / "dataset" / "our_corpus.yaml").write_text(yaml)
    for split in ("train", "test"):
        soundfile.write(calls / f"{split}.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16000), 16000)
        (calls / f"{split}.csv").write_text(f"file,text,agent\n{split}.wav,hello,ann\n")
    (command,) = [line for line in commands(text, "PYTHONPATH") if "stages" in line]
    done = launch(tmp_path, *shlex.split(command)[3:], environment={"PYTHONPATH": str(tmp_path)})
    assert done.code == 0, done.err
    assert "our_corpus" in done.out
    wrong = launch(tmp_path, *shlex.split(command)[3:], "dataset.qeue=x", environment={"PYTHONPATH": str(tmp_path)})
    assert wrong.code == 2
    assert "Did you mean dataset.queue?" in wrong.err
