"""The case step: turns, equal losses, and what becomes of those whose losses are not."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gptfit.bench.contestant import GPTFIT, HUGGING_FACE, NANOGPT, Contestant, assemble
from gptfit.bench.inputs import Inputs
from gptfit.bench.picture import draw_step, draw_sweep
from gptfit.bench.process import BenchError
from gptfit.bench.steps import PARITY, PARITY_STEPS, StepResult, comparable, measure, require_room
from gptfit.config import Recipe
from gptfit.errors import ConfigError
from gptfit.plan.params import count_parameters

ROUNDS, STEPS = 2, 3


def contestants(recipe: Recipe, *names: str, checkout: Path | None = None) -> list[Contestant]:
    return assemble(recipe, "cpu", "float32", checkout, names)[0]


def run(field: list[Contestant], inputs: Inputs) -> StepResult:
    return measure(field, [], inputs, ROUNDS, STEPS, print)


@pytest.fixture(scope="module")
def result(recipe: Recipe, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> StepResult:
    """gptfit, Hugging Face, one who learns too fast, and one that breaks down."""
    pytest.importorskip("transformers")
    ours, theirs = contestants(recipe, "gptfit", "huggingface-tuned")
    hasty = replace(theirs, recipe=recipe.override(["learning_rate=0.05"]), tuned=False)
    broken = tmp_path_factory.mktemp("broken")
    (broken / "model.py").write_text("raise RuntimeError('this model is broken')\n")
    breaks = Contestant(NANOGPT, recipe, "float32", fused=False, compiled=False, checkout=broken)
    return run([ours, theirs, hasty, breaks], inputs)


def test_the_losses_of_hugging_face_are_ours(result: StepResult) -> None:
    ours, theirs = result.rows[:2]
    assert [ours.key, theirs.key] == [GPTFIT, "huggingface-tuned"]
    assert len(theirs.losses) == PARITY_STEPS + 1
    assert theirs.losses == pytest.approx(ours.losses, rel=1e-4)
    assert ours.loss < 0.9 * ours.losses[0]
    assert not theirs.void


def test_a_contestant_with_other_losses_is_void(result: StepResult) -> None:
    hasty = result.rows[2]
    assert hasty.losses[0] == pytest.approx(result.rows[0].losses[0], rel=1e-4)
    assert abs(hasty.loss_difference) > PARITY
    assert hasty.void
    assert not result.passed


def test_a_contestant_that_breaks_down_is_left_behind(result: StepResult) -> None:
    (broken,) = result.absent
    assert broken.failed
    assert "this model is broken" in broken.reason
    assert len(result.rows) == 3
    sound = replace(result, rows=result.rows[:2])
    assert not sound.passed
    assert replace(sound, absent=()).passed


def test_figures_follow_from_the_rounds(result: StepResult) -> None:
    ours, theirs = result.rows[:2]
    for row in (ours, theirs):
        speed = row.tokens_per_second
        assert len(speed.values) == ROUNDS
        assert speed.low <= speed.median <= speed.high
        assert row.start_seconds > row.seconds_per_step > 0
        assert row.peak_bytes > 2**20
        assert row.matmul_share > 0
    assert ours.times == 1.0
    assert theirs.times == pytest.approx(theirs.seconds_per_step / ours.seconds_per_step)
    assert len(result.matmul_flops_per_second.values) == ROUNDS


def test_result_as_values(result: StepResult) -> None:
    values = asdict(result)
    assert values["batch_size"] == 4
    assert values["context"] == 16
    assert values["recipe"]["model"]["n_embd"] == 32
    assert Recipe.from_dict(values["recipe"]).train.learning_rate == 0.002
    assert "torch" in values["setting"]["versions"]
    assert set(values["rows"][0]["tokens_per_second"]) == {"median", "low", "high", "values"}


def test_pictures(result: StepResult, tmp_path: Path) -> None:
    draw_step([result], tmp_path / "step.png")
    draw_sweep([result, replace(result, batch_size=8)], tmp_path / "sweep.png")
    for name in ("step.png", "sweep.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_gptfit_that_breaks_down_ends_it(recipe: Recipe, inputs: Inputs, tmp_path: Path) -> None:
    lost = replace(inputs, weights=tmp_path)
    with pytest.raises(BenchError, match=r"gptfit ended with exit code 1: .*config\.json"):
        run(contestants(recipe, "gptfit"), lost)


@pytest.mark.skipif("GPTFIT_NANOGPT" not in os.environ, reason="GPTFIT_NANOGPT names no checkout")
def test_the_losses_of_nanogpt_are_ours(recipe: Recipe, inputs: Inputs) -> None:
    checkout = Path(os.environ["GPTFIT_NANOGPT"])
    exact = recipe.override(["activation_function=gelu"])
    field = contestants(exact, "nanogpt-tuned", "nanogpt", checkout=checkout)
    ours, *theirs = run(field, inputs).rows
    assert [row.key for row in theirs] == ["nanogpt-tuned", "nanogpt"]
    for row in theirs:
        assert row.losses == pytest.approx(ours.losses, rel=1e-3)
        assert not row.void


def test_who_cannot_take_part_and_why(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    field, absent = assemble(recipe, "cpu", "float32", None)
    assert {one.name for one in absent} >= {"nanoGPT", "nanoGPT, tuned"}
    assert "--nanogpt DIR" in absent[-1].reason
    bare = recipe.override(["bias=false"])
    _, absent = assemble(bare, "cpu", "float32", tmp_path)
    assert {one.reason for one in absent} == {"its GPT-2 has no form without biases"}
    narrow = recipe.override(["n_inner=64"])
    _, absent = assemble(narrow, "cpu", "float32", tmp_path)
    assert "n_inner=64" in absent[-1].reason
    relu = recipe.override(["activation_function=relu"])
    _, absent = assemble(relu, "cpu", "float32", tmp_path)
    assert "activation_function='relu'" in absent[-1].reason
    assert field[0].code == GPTFIT
    with pytest.raises(ConfigError, match=r"did you mean 'nanogpt'"):
        assemble(recipe, "cpu", "float32", None, ["nanogtp"])
    with pytest.raises(ConfigError, match=r"holds no model\.py"):
        assemble(recipe, "cpu", "float32", tmp_path / "elsewhere")


def test_on_a_gpu_all_but_the_plain_one_compile(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    everybody, _ = assemble(recipe, "cuda", "bfloat16", tmp_path)
    compiled = {one.key: one.compiled for one in everybody}
    assert compiled.pop(HUGGING_FACE, False) is False
    assert all(compiled.values())
    assert compiled.keys() >= {GPTFIT, NANOGPT}
    assert "nanogpt-tuned" not in compiled
    asked, _ = assemble(recipe.override(["compile=off"]), "cuda", "bfloat16", None)
    assert not asked[0].compiled


def test_what_must_be_equal_is(recipe: Recipe) -> None:
    regularised = Recipe.resolve(preset="nanogpt-shakespeare-char")
    assert regularised.model.resid_pdrop > 0
    assert comparable(regularised).model.resid_pdrop == 0
    for asked in ("dropout=0.1", "optimizer=muon"):
        with pytest.raises(ConfigError, match="cannot be compared"):
            comparable(Recipe.resolve(overrides=[asked]))


def test_a_field_that_does_not_fit_is_refused(recipe: Recipe) -> None:
    field = contestants(recipe, "huggingface", "huggingface-tuned")
    parameters = count_parameters(recipe.model).total
    require_room(field, "cpu", 10**9, parameters)
    with pytest.raises(ConfigError, match="--contestants"):
        require_room(field, "cpu", 10**6, parameters)


def test_on_a_gpu_only_one_needs_room_for_its_step(recipe: Recipe) -> None:
    large = recipe.override(["n_embd=512", "n_positions=1024", "vocab_size=50257"])
    one = contestants(large, "gptfit") * 4
    parameters = count_parameters(large.model).total
    usable = 8 * 10**9
    require_room(one, "cuda", usable, parameters)
    with pytest.raises(ConfigError, match="together"):
        require_room(one, "cpu", usable, parameters)
