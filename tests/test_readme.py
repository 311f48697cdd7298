"""Every command and every Python block of the README runs, in order, with less time and a smaller model."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from command_line import SMALL, TEXT, call

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("gptfit ")
]


def quick(command: str) -> list[str]:
    """The same command for a test: seconds, not minutes, and a tiny model."""
    words = shlex.split(command, comments=True)[1:]
    words = [re.sub(r"^\d+m$", "2s", word) for word in words]
    words = [re.sub(r"^max_steps=\d+$", "max_steps=5", word) for word in words]
    if words[0] == "fit" or (words[0] == "train" and "--resume" not in words):
        words += [word for word in SMALL if word.partition("=")[0] not in command]
    return words


def test_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-text.txt").write_text(
        "Once upon a time. " + "".join(map(chr, range(33, 127))) + TEXT * 5, encoding="utf-8"
    )
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        result = call(*quick(command))
        assert result.code == 0, f"{command}\n{result.err}"
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), namespace)
    assert {"model", "tokenizer", "config"} <= set(namespace)


def test_plan_is_what_is_printed() -> None:
    command = next(line for line in COMMANDS if line.startswith("gptfit plan gpt2 "))
    printed = call(*shlex.split(command)[1:]).out
    assert "\n".join(line.rstrip() for line in printed.splitlines()) in README


def test_error_example_is_what_is_printed() -> None:
    example = re.search(r">>> (GPT2Config\(.*\))\nConfigError: (.*?)```", README, re.DOTALL)
    assert example is not None
    from gptfit import GPT2Config

    with pytest.raises(ValueError) as caught:
        eval(example[1], {"GPT2Config": GPT2Config})
    assert str(caught.value) == example[2].strip()


def test_figures_in_the_text_are_the_computed_ones() -> None:
    from gptfit.config import find_preset
    from gptfit.plan.params import count_parameters

    assert f"{count_parameters(find_preset('gpt2').config).total:,}" in README
    really = count_parameters(find_preset("500M-1024").config).total
    assert f"really having {really / 1e6:.0f}M" in README


def test_the_table_of_speed_is_that_of_the_stored_results() -> None:
    shown = re.search(r"## How fast\n.*?\n\n(\|.*?)\n\n", README, re.DOTALL)
    assert shown is not None
    assert shown[1] == runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))["table"]()


def test_the_lab_book_shows_the_stored_results_of_generation() -> None:
    shown = runpy.run_path(str(ROOT / "benchmarks" / "decode.py"))["table"]
    stored = json.loads((ROOT / "benchmarks/results/decode.json").read_text(encoding="utf-8"))
    assert shown(stored) in (ROOT / "docs" / "lab-book.md").read_text(encoding="utf-8")
