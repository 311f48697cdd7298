"""The cases that run whole programs: nanoGPT's recipes and the challenge."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gptfit.bench.challenge import ChallengeResult, bytes_per_character, take_challenge
from gptfit.bench.figures import Spread, setting
from gptfit.bench.picture import draw_challenge, draw_race
from gptfit.bench.process import BenchError, environment, run_to_end
from gptfit.bench.races import (
    RACES,
    Finish,
    RaceResult,
    loss_of_nanogpt,
    nats_per_character,
    run_race,
)
from gptfit.config import GPT2Config
from gptfit.config.dialects import to_nanogpt
from gptfit.config.presets import find_preset
from gptfit.data import TextSource, TokenDataset, Tokenizer, prepare
from gptfit.generate import evaluate
from gptfit.model import GPT2
from tiny_run import TEXT

UMLAUTS = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n" * 30
CONFIG = GPT2Config(
    n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=40, activation_function="gelu",
    bias=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


@pytest.fixture
def german(tmp_path: Path) -> TextSource:
    (tmp_path / "text.txt").write_text(UMLAUTS, encoding="utf-8")
    return TextSource.from_paths([str(tmp_path / "text.txt")])


@pytest.fixture
def dataset(german: TextSource, tmp_path: Path) -> TokenDataset:
    return prepare(german, Tokenizer.char(german.characters), tmp_path / "tokens")


def save_as_nanogpt(path: Path, model: GPT2, extra: Mapping[str, object]) -> None:
    """What nanoGPT's ``train.py`` saves, of a compiled model."""
    state = model.state_dict()
    names = {name: f"transformer.{name}" for name in state} | {"lm_head.weight": "lm_head.weight"}
    values = {f"_orig_mod.{names[name]}": tensor for name, tensor in state.items()}
    torch.save({"model": values, "model_args": to_nanogpt(model.config), **extra}, path)


def test_loss_of_a_checkpoint_of_nanogpt(dataset: TokenDataset, tmp_path: Path) -> None:
    model = GPT2(CONFIG, generator=torch.Generator().manual_seed(1))
    extra = {"best_val_loss": torch.tensor(1.9), "config": {"dropout": 0.0}, "iter_num": 2000}
    save_as_nanogpt(tmp_path / "ckpt.pt", model, extra)
    found = loss_of_nanogpt(tmp_path / "ckpt.pt", dataset)
    assert found == pytest.approx(evaluate(model, dataset.val).loss, abs=1e-6)


def test_a_checkpoint_cannot_run_code(dataset: TokenDataset, tmp_path: Path) -> None:
    model = GPT2(CONFIG, generator=torch.Generator().manual_seed(1))
    save_as_nanogpt(tmp_path / "ckpt.pt", model, {"config": Finish})
    with pytest.raises(BenchError, match=r"ckpt\.pt"):
        loss_of_nanogpt(tmp_path / "ckpt.pt", dataset)
    with pytest.raises(BenchError, match=r"left no other\.pt"):
        loss_of_nanogpt(tmp_path / "other.pt", dataset)


def test_nats_per_character(german: TextSource, dataset: TokenDataset) -> None:
    """A character of this text is more than a byte on average, in the validation split too."""
    val = UMLAUTS.encode()[-(dataset.val_text_bytes or 0) :]
    ratio = len(val) / len(val.decode())
    assert ratio > 1.05
    assert bytes_per_character(german, dataset.folder) == pytest.approx(ratio)
    outcome = {"bits_per_byte": 2.0}
    assert nats_per_character(outcome, dataset) == pytest.approx(2 * 0.6931472 * ratio)


def test_both_programs_train_the_same_model() -> None:
    """What nanoGPT is told on its command line is what our preset says."""
    race = RACES["recipe"]
    told = dict(word.removeprefix("--").split("=") for word in race.arguments)
    preset = find_preset(race.recipe)
    words = {"n_positions": "block_size", "resid_pdrop": "dropout"}
    for name in ("n_positions", "n_layer", "n_head", "n_embd", "resid_pdrop"):
        assert getattr(preset.config, name) == float(told[words.get(name, name)]), name
    assert preset.recipe_values["train"]["batch_size"] == int(told["batch_size"])


def finish(name: str, seconds: float, loss: float) -> Finish:
    return Finish(name, name, Spread.of([seconds]), (loss,))


def test_gate_and_picture(tmp_path: Path) -> None:
    result = RaceResult(
        "recipe", "nanoGPT", "text", 1.9, 5.0,
        finish("gptfit", 14.0, 1.8999), finish("nanoGPT", 70.0, 1.9), setting(),
    )  # fmt: skip
    assert result.passed
    assert not replace(result, ours=finish("gptfit", 14.0, 1.91)).passed
    assert not replace(result, ours=finish("gptfit", 14.0, float("nan"))).passed
    draw_race([result], tmp_path / "race.png")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_only_gptfit_has_what_its_command_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert environment(is_ours=True)["GOMP_SPINCOUNT"] == "10000"
    assert "GOMP_SPINCOUNT" not in environment(is_ours=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    assert "GOMP_SPINCOUNT" not in environment(is_ours=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # the user's wish holds for all
    assert {environment(ours)["GOMP_SPINCOUNT"] for ours in (True, False)} == {"7"}


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo working; echo no such thing >&2; exit 3"]
    with pytest.raises(BenchError, match="it ended with exit code 3: no such thing"):
        run_to_end(command, "it", tmp_path, is_ours=False)
    with pytest.raises(BenchError, match=r"it was ended by SIGKILL .*memory"):
        run_to_end(["sh", "-c", "kill -9 $$"], "it", tmp_path, is_ours=False)


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> ChallengeResult:
    folder = tmp_path_factory.mktemp("challenge")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = TextSource.from_paths([str(folder / "text.txt")])
    # 64 wide: a width whose speed conftest has made known
    wishes = ["n_layer=1", "n_embd=64", "n_head=2", "n_positions=16", "tokenizer=char"]
    return take_challenge(text, [str(folder / "text.txt")], "2s", wishes, folder, print)


def test_challenge(challenge: ChallengeResult, tmp_path: Path) -> None:
    assert challenge.seconds > 2
    assert challenge.steps > 0
    assert challenge.nats_per_character == pytest.approx(0.6931472 * challenge.bits_per_byte)
    assert challenge.curve
    assert challenge.curve[-1].seconds > 1
    assert asdict(challenge)["curve"][0].keys() == {"seconds", "nats_per_character"}
    draw_challenge([challenge], tmp_path / "challenge.png")
    assert (tmp_path / "challenge.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif("GPTFIT_NANOGPT" not in os.environ, reason="GPTFIT_NANOGPT names no checkout")
def test_race(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    race = RACES["recipe"]
    shorter = ["--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10", "--block_size=16"]
    short = replace(race, arguments=(*race.arguments, *shorter))
    wishes = ["max_steps=20", "n_positions=16", "eval_interval=20", "learning_rate=0.01"]
    result = run_race(
        short, Path(os.environ["GPTFIT_NANOGPT"]), TextSource.from_paths([str(path)]), [str(path)],
        "nanogpt-shakespeare-char-cpu", wishes, 1, tmp_path, print,
    )  # fmt: skip
    assert result.times == pytest.approx(result.theirs.seconds.median / result.ours.seconds.median)
    assert result.target == result.theirs.loss
    assert 0 < result.ours.loss < 3.3
    assert 0 < result.theirs.loss < 3.3
