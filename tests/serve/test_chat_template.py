"""Where a chat template is found, and what one may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptfit.errors import DataError
from gptfit.serve.chat_template import ChatTemplate, find_chat_template

MESSAGES = [{"role": "system", "content": "x"}, {"role": "user", "content": "{{ 7*7 }} <b>"}]
TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
{{ bos_token }}{{ message | tojson }}
{% endfor -%}
{% if add_generation_prompt %}assistant:{% endif %}"""


def folder_with(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_renders_as_transformers(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    tokens = {"bos_token": theirs.bos_token}
    expected = theirs.apply_chat_template(
        MESSAGES, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(TEMPLATE, tokens).render(MESSAGES) == expected
    assert "{{ 7*7 }} <b>" in expected


def test_where_it_is_found(tmp_path: Path) -> None:
    assert find_chat_template(tmp_path) is None
    assert find_chat_template(folder_with(tmp_path)) is None
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    for config, text in (
        ({"chat_template": "{{ eos_token }}!", "eos_token": {"content": "</s>"}}, "</s>!"),
        ({"chat_template": several}, "d"),
    ):
        template = find_chat_template(folder_with(tmp_path, **config))
        assert template is not None
        assert template.render(MESSAGES) == text
    (tmp_path / "chat_template.jinja").write_text("own", encoding="utf-8")
    template = find_chat_template(tmp_path)
    assert template is not None
    assert template.render(MESSAGES) == "own"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('not so') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_what_a_template_may_not(source: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the chat template refuses these messages"):
        ChatTemplate(source, {}).render(MESSAGES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", ["{% if %}", "{{", 5, {"a": 1}])
def test_unusable_templates(tmp_path: Path, template: Any) -> None:
    with pytest.raises(DataError, match="correct or remove it"):
        find_chat_template(folder_with(tmp_path, chat_template=template))


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_unreadable_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="no chat template can be read"):
        find_chat_template(tmp_path)
