"""Each rule speaks up when it should, and is silent otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptfit.config import GPT2Config, Recipe, presets
from gptfit.errors import ConfigError
from gptfit.plan.hardware import find_device
from gptfit.plan.lint import (
    ERROR,
    HINT,
    RULES,
    WARNING,
    DataFacts,
    Finding,
    Pretrained,
    Program,
    Subject,
    find_rule,
    hard_findings,
    lint,
)
from lint_cases import (
    ADVISED,
    AMPERE,
    GPT2,
    HF,
    HOPPER,
    REFUSED,
    SHAPED,
    TURING,
    epochs,
    habits,
    step,
    subject,
)


def codes(of: Subject) -> set[str]:
    return {finding.code for finding in lint(of)}


def severity(of: Subject, code: str) -> str:
    return next(finding.severity for finding in lint(of) if finding.code == code)


def refusals(overrides: list[str]) -> list[Finding]:
    try:
        Recipe.resolve(overrides=overrides)
    except ConfigError as error:
        return hard_findings(error)
    return []


def test_all_71_rules_exist_and_have_their_cases() -> None:
    numbers = {"A": 28, "P": 6, "D": 11, "T": 8, "R": 18}
    wanted = {f"{family}{n:02}" for family, count in numbers.items() for n in range(1, count + 1)}
    assert len(wanted) == 71
    assert set(RULES) == wanted
    assert {code for code, rule in RULES.items() if rule.check} == set(ADVISED)
    assert {code for code, rule in RULES.items() if rule.refusal} >= set(REFUSED)
    assert set(ADVISED) | set(REFUSED) == wanted


@pytest.mark.parametrize("code", ADVISED)
def test_rule_remarks(code: str) -> None:
    assert code in codes(ADVISED[code][0])


@pytest.mark.parametrize("code", ADVISED)
def test_rule_is_silent(code: str) -> None:
    assert code not in codes(ADVISED[code][1])


@pytest.mark.parametrize("code", REFUSED)
def test_refused_with_the_code_of_its_rule(code: str) -> None:
    wrong, right = REFUSED[code]
    found = refusals(list(wrong))
    assert [(finding.code, finding.severity) for finding in found] == [(code, ERROR)]
    assert refusals(list(right)) == []


def test_findings_say_where_why_and_what_instead() -> None:
    for bad, _ in ADVISED.values():
        for finding in lint(bad):
            assert finding.field
            assert finding.message
            assert finding.fix
            assert finding.source


def test_rules_explain_themselves() -> None:
    for rule in RULES.values():
        assert rule.title
        assert len(rule.why) > 40, rule.code
        assert rule.source


def test_bare_configurations_of_gpt2_are_fine() -> None:
    for name in ("gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl"):
        config: GPT2Config = getattr(GPT2Config, name)()
        assert codes(Subject(recipe=Recipe(model=config))) == set()


@pytest.mark.parametrize("preset", [preset.name for preset in presets()])
def test_no_errors_or_warnings_on_presets(preset: str) -> None:
    found = lint(Subject(recipe=Recipe.resolve(preset=preset)))
    assert [finding for finding in found if finding.severity != HINT] == []


def test_sorted_by_severity() -> None:
    found = [f.severity for f in lint(subject("attn_pdrop=0.5", "beta2=0.9", pretrained=None))]
    assert found == sorted(found, key=[ERROR, WARNING, HINT].index)
    assert len(set(found)) == 2


def test_select_and_ignore() -> None:
    bad = subject("attn_pdrop=0.5", "beta2=0.9")
    assert [finding.code for finding in lint(bad, select=["D"])] == ["D06"]
    assert [finding.code for finding in lint(bad, ignore=["D06"])] == ["T05"]
    assert lint(bad, select=["D"], ignore=["D06"]) == []
    with pytest.raises(ConfigError, match="no rule 'X99'"):
        lint(bad, select=["X99"])


def test_find_rule() -> None:
    assert find_rule("a12").code == "A12"
    with pytest.raises(ConfigError, match="no rule"):
        find_rule("Q7")


def test_unknown_program() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nanogpt'"):
        Program.named("nanogtp")


def test_silent_about_training_where_nothing_was_said() -> None:
    said = Recipe.from_dict({"model": {"n_layer": 2}, "train": {"beta2": 0.9}})
    unsaid = Recipe.from_dict({"model": {"n_layer": 2}})
    assert "T05" in codes(Subject(recipe=said))
    assert "T05" not in codes(Subject(recipe=unsaid))


def test_a_preset_leaves_its_vocabulary_to_the_data() -> None:
    assert "A27" not in codes(subject(preset="tiny"))
    assert "A27" in codes(subject("vocab_size=50304", preset="tiny"))
    assert "A27" in codes(subject(preset="tiny", program=HF))


def test_a_problem_without_a_rule_is_a_finding_too() -> None:
    found = refusals(["batch_size=0"])
    assert [(f.code, f.severity, f.field) for f in found] == [("E", ERROR, "train.batch_size")]


# What a rule's severity, message or silence depends on beside its first condition.


def test_head_dim_off_the_multiples_of_8_is_a_warning() -> None:
    assert severity(subject("n_head=32"), "A12") == HINT
    assert severity(subject("n_embd=780", "n_head=13"), "A12") == WARNING


def test_gpt2s_own_shapes_are_left_alone() -> None:
    assert not {"A13", "A28"} & codes(subject(preset="gpt2-medium", device=HOPPER))
    assert "A28" not in codes(subject(*SHAPED, program=HF))


def test_given_weights_fix_the_architecture() -> None:
    odd = ["scale_attn_weights=false", "n_inner=100", "initializer_range=0.2"]
    weights = Pretrained(Recipe.resolve(overrides=odd).model)
    assert not {"A15", "A18", "A20"} & codes(subject(*odd, pretrained=weights))


def test_same_function_by_another_name_fits_the_weights() -> None:
    same = subject("activation_function=gelu_pytorch_tanh", pretrained=GPT2)
    other = subject("activation_function=gelu", pretrained=GPT2)
    assert "P01" not in codes(same)
    assert "P01" in codes(other)


def test_a_padded_vocabulary_fits_the_weights() -> None:
    assert "P01" not in codes(subject("vocab_size=50304", pretrained=GPT2))
    assert "P01" in codes(subject("vocab_size=32000", pretrained=GPT2))


def test_pretrained_names_each_difference() -> None:
    found = [f for f in lint(subject("n_layer=6", "n_head=6", pretrained=GPT2)) if f.code == "P01"]
    assert [finding.field for finding in found] == ["model.n_layer", "model.n_head"]


def test_little_text_for_given_weights_wants_dropout() -> None:
    little = DataFacts(train_tokens=10**5)
    assert "P03" in codes(subject("dropout=0", pretrained=GPT2, data=little))


def test_a_classifier_without_padding_is_an_error() -> None:
    program = habits(head="sequence classification")
    assert severity(subject("batch_size=4", program=program), "P06") == ERROR
    assert "P06" not in codes(subject("batch_size=1", program=program))


def test_upcast_attention_costs_in_gptfit_and_does_nothing_in_transformers() -> None:
    assert severity(subject("reorder_and_upcast_attn=true"), "A22") == HINT
    assert severity(subject("reorder_and_upcast_attn=true", program=HF), "A22") == WARNING
    float16 = step(dtype="float16", attention="eager")
    assert "A22" not in codes(subject("reorder_and_upcast_attn=true", program=float16))


def test_epochs() -> None:
    assert severity(epochs(10, "dropout=0"), "D03") == HINT
    assert severity(epochs(20, "dropout=0"), "D03") == WARNING
    assert severity(epochs(82, "dropout=0.2"), "D03") == HINT  # nanoGPT's Shakespeare


def test_memorising_is_worse_where_the_best_checkpoint_is_not_kept() -> None:
    assert severity(epochs(1), "D08") == HINT
    assert severity(epochs(1, program=HF), "D08") == WARNING


def test_many_tokens_per_parameter() -> None:
    assert "D07" in codes(subject(preset="nanogpt-124M"))
    assert "D07" not in codes(epochs(4))  # says nothing about text that is repeated


def test_fine_tuning_is_not_a_low_rate() -> None:
    low = ["lr=1e-5", "batch_size=512", "optimizer=adamw"]
    assert "T01" in codes(subject(*low))
    assert "T01" not in codes(subject(*low, "schedule=constant", "warmup_steps=0"))


def test_no_warm_up_and_no_clipping() -> None:
    assert "T02" in codes(subject("warmup_steps=0", "lr=1e-3"))
    fields = [f.field for f in lint(subject("grad_clip=0", "beta2=0.99")) if f.code == "T05"]
    assert fields == ["train.grad_clip"]


def test_claimed_tokens_per_step() -> None:
    claims = subject("batch_size=8", program=habits(tokens_per_step=524_288))
    right = subject("batch_size=8", program=habits(tokens_per_step=8 * 1024))
    assert "T07" in codes(claims)
    assert "T07" not in codes(right)


def test_memory_message_has_the_numbers() -> None:
    found = next(
        f for f in lint(subject("batch_size=12", device=find_device("rtx3060"))) if f.code == "R01"
    )
    assert found.severity == ERROR
    assert "RTX 3060 has 11.6 GiB" in found.message
    assert "saves" in found.fix
    assert "fits" in found.fix


def test_a_step_that_cannot_be_taken_is_an_error() -> None:
    found = lint(subject(program=step(context=2048), device=AMPERE), select=["R01"])
    assert [(f.code, f.severity) for f in found] == [("E", ERROR)]
    assert "context=2048 is beyond n_positions=1024" in found[0].message


def test_hopeless_memory_has_no_automatic_repair() -> None:
    found = next(
        f
        for f in lint(subject("batch_size=8", preset="gpt2-xl", device=find_device("rtx3060")))
        if f.code == "R01"
    )
    assert found.changes == {}
    assert found.fix


def test_logits_are_a_hint_where_there_is_room() -> None:
    assert severity(subject("batch_size=12", device=HOPPER), "R04") == HINT
    assert severity(subject("batch_size=12", device=AMPERE), "R04") == WARNING


def test_gptfit_itself_is_not_told_what_it_does_not_do() -> None:
    others = {"A10", "A11", "R02", "R06", "R09", "R11", "R17", "T06"}
    assert not others & codes(subject("batch_size=12", device=AMPERE))


def test_float16_without_a_scaler() -> None:
    program = habits(step={"dtype": "float16"}, grad_scaler=False)
    assert severity(subject(program=program), "R07") == WARNING
    assert "R07" not in codes(subject(program=step(dtype="float16")))


def test_automatic_precision_suits_the_device() -> None:
    assert not {"R07", "R08"} & codes(subject("batch_size=1", device=TURING))
    assert not {"R07", "R08"} & codes(subject("batch_size=1", device=AMPERE))


def test_compiling_a_short_run_or_on_windows() -> None:
    compiled = step(compiled=True)
    assert "R09" in codes(subject("max_seconds=60", program=compiled))
    assert "R09" in codes(
        subject(program=habits(step={"compiled": True}, operating_system="windows"))
    )
    assert "R09" not in codes(subject("max_seconds=60", program=HF))


# For callers in Python.


def test_whatever_says_a_configuration_can_be_linted(tmp_path: Path) -> None:
    GPT2Config(attn_pdrop=0.5).save(tmp_path / "config.json")
    recipe = Recipe.resolve(overrides=["attn_pdrop=0.5"])
    recipe.save(tmp_path / "mine.toml")
    ways = [recipe, recipe.model, recipe.to_dict(), tmp_path, str(tmp_path / "mine.toml")]
    for way in ways:
        assert "D06" in {finding.code for finding in lint(way)}
    assert lint(Subject(recipe=recipe)) == lint(recipe)
    assert lint("gpt2", select=["A"]) == []


def test_what_is_known_beside_it_can_be_named() -> None:
    found = lint("gpt2", device="rtx3060", program="huggingface", select=["R01", "R02"])
    assert [finding.code for finding in found] == ["R01", "R02"]
    assert lint({"n_layer": 6}, pretrained=GPT2Config(), select=["P"])[0].code == "P01"
    with pytest.raises(ConfigError, match="no preset"):
        lint("gtp2")
    with pytest.raises(ConfigError, match="rtx9"):
        lint("gpt2", device="rtx9")
