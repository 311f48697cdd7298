"""Each rule speaks up when it should, and is silent otherwise."""

from __future__ import annotations

import pytest

from gptfit.config import Recipe, presets
from gptfit.errors import ConfigError
from gptfit.plan.lint import ERROR, RULES, hard_findings, lint

# For each rule a recipe that it alone must remark on.
REMARKED = {
    "A06": ["layer_norm_epsilon=0.01"],
    "A12": ["n_head=32"],
    "A14": ["n_embd=780", "n_head=13"],
    "A15": ["n_inner=100"],
    "A16": ["n_layer=96"],
    "A18": ["initializer_range=0.2"],
    "A20": ["scale_attn_weights=false"],
    "A21": ["scale_attn_by_inverse_layer_idx=true"],
    "A22": ["reorder_and_upcast_attn=true"],
    "A24": ["summary_type=mean"],
    "A26": ["tie_word_embeddings=false", "n_layer=6", "n_embd=512", "n_head=8"],
    "A27": ["n_embd=128", "n_head=2", "n_layer=4"],
    "D06": ["attn_pdrop=0.5"],
    "T02": ["max_steps=100", "warmup_steps=50"],
    "T05": ["grad_clip=0"],
    "T06": ["beta2=0.9"],
}


def codes(overrides: list[str]) -> set[str]:
    quiet = ["beta2=0.99"]
    return {finding.code for finding in lint(Recipe.resolve(overrides=[*quiet, *overrides]))}


def test_every_rule_has_its_example() -> None:
    assert {rule.code for rule in RULES} == set(REMARKED)
    assert len(RULES) >= 10


@pytest.mark.parametrize("code", REMARKED)
def test_rule_remarks_and_no_other(code: str) -> None:
    # No width off the multiples of 64 has heads of 64 or 128.
    companions = {"A12"} if code == "A14" else set()
    assert codes(REMARKED[code]) == {code} | companions


def test_gpt2_itself_is_fine() -> None:
    assert codes([]) == set()


def test_findings_say_where_why_and_what_instead() -> None:
    for overrides in REMARKED.values():
        for finding in lint(Recipe.resolve(overrides=overrides)):
            assert finding.field
            assert finding.message
            assert finding.fix
            assert finding.source


def test_presets_have_no_warning_that_is_not_meant() -> None:
    warned = {
        (preset.name, finding.code)
        for preset in presets()
        for finding in lint(Recipe.resolve(preset=preset.name))
        if finding.severity == "warning"
    }
    # Seed sizes with a 50k vocabulary on a narrow model: the linter is right, and says so.
    assert {name for name, _ in warned} <= {"tiny", "small"}, warned


def test_hard_faults_are_findings_too() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.resolve(overrides=["n_head=10", "attn_pdrop=2"])
    findings = hard_findings(caught.value)
    assert [finding.severity for finding in findings] == [ERROR, ERROR]
    assert {finding.field for finding in findings} == {"model.n_head", "model.attn_pdrop"}
