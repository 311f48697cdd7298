"""What the openai client gets is what the engine writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from gptfit.formats.integrity import sha256
from gptfit.generate import SamplingOptions, generate_text, score
from gptfit.serve import ServedModel
from gptfit.serve.chat_template import ChatTemplate
from running_server import Running

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}{{ message.role[0] }}: {{ message.content }}{{ eos_token }}{% endfor %}a:"
)
PROMPT = "the cat"


def written(model: ServedModel, prompt: str = PROMPT, n: int = 16, **options: Any) -> str:
    """What the engine writes for one prompt, alone."""
    assert model.tokenizer is not None
    stop = options.pop("stop", ())
    pieces = generate_text(
        model.network, model.tokenizer, prompt, n, SamplingOptions(**options), stop=stop
    )
    return "".join(piece for (piece,) in pieces)


def test_text_usage_and_envelope(server: Running, model: ServedModel) -> None:
    answer = server.openai.completions.create(model="tiny", prompt=PROMPT, seed=3, max_tokens=20)
    assert answer.choices[0].text == written(model, n=20, seed=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 20)
    assert answer.usage.total_tokens == 22


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.9},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"logit_bias": {"40": 5.0, "41": -100}},
        {"extra_body": {"top_k": 7, "min_p": 0.02, "repetition_penalty": 1.3}},
    ],
    ids=lambda options: ",".join(options),
)
def test_sampling_options(server: Running, model: ServedModel, options: dict[str, Any]) -> None:
    answer = server.openai.completions.create(model="tiny", prompt=PROMPT, seed=1, **options)
    own = {**options, **options.get("extra_body", {})}
    own.pop("extra_body", None)
    if "logit_bias" in own:
        own["logit_bias"] = {int(token): bias for token, bias in own["logit_bias"].items()}
    assert answer.choices[0].text == written(model, seed=1, **own)


def test_prompts_and_samples_are_independent(server: Running, model: ServedModel) -> None:
    prompts = ["the cat", "sit", "", "😀 12"]
    answer = server.openai.completions.create(model="tiny", prompt=prompts[:3], n=2, seed=9)
    texts = {choice.index: choice.text for choice in answer.choices}
    for place, prompt in enumerate(prompts[:3]):
        for sample in range(2):
            assert texts[2 * place + sample] == written(model, prompt, seed=9 + sample)


def test_token_ids_as_prompts(server: Running, model: ServedModel) -> None:
    assert model.tokenizer is not None
    ids = [int(token) for token in model.tokenizer.encode(PROMPT)]
    one = server.openai.completions.create(model="tiny", prompt=ids, seed=2)
    two = server.openai.completions.create(model="tiny", prompt=[ids, [5]], seed=2)
    assert one.choices[0].text == two.choices[0].text == written(model, seed=2)
    assert two.usage is not None
    assert two.usage.prompt_tokens == len(ids) + 1


def test_past_the_context(server: Running, model: ServedModel) -> None:
    answer = server.openai.completions.create(model="tiny", prompt=PROMPT, seed=4, max_tokens=150)
    assert answer.choices[0].text == written(model, n=150, seed=4)


def test_without_a_seed_texts_differ(server: Running) -> None:
    texts = {server.complete(prompt=PROMPT).json()["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 4


def test_stream_is_the_same_text(server: Running, model: ServedModel) -> None:
    stream = server.openai.completions.create(
        model="tiny", prompt=[PROMPT, "sit"], seed=5, stream=True, max_tokens=60,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, reasons, usage = ["", ""], [None, None], None
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason  # type: ignore[call-overload]
        usage = chunk.usage
    assert texts == [written(model, prompt, n=60, seed=5) for prompt in (PROMPT, "sit")]
    assert reasons == ["length", "length"]
    assert chunks[-1].choices == []
    assert usage is not None
    assert usage.completion_tokens == 120
    assert len({chunk.id for chunk in chunks}) == 1


def test_events_as_they_are_sent(server: Running) -> None:
    answer = server.complete(prompt=PROMPT, stream=True, max_tokens=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert "usage" not in chunks[0]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-1:]] == ["length"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(server: Running, model: ServedModel, stream: bool) -> None:
    free = written(model, n=60, seed=6)
    stop = free[20:24]
    answer = server.openai.completions.create(
        model="tiny", prompt=PROMPT, seed=6, max_tokens=60, stop=[stop, "nowhere"], stream=stream,
        logprobs=0,
    )  # fmt: skip
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    text = "".join(choice.text for choice in choices)
    assert text == free[: free.index(stop)] == written(model, n=60, seed=6, stop=[stop])
    assert choices[-1].finish_reason == "stop"
    offsets = [offset for choice in choices for offset in choice.logprobs.text_offset]
    assert offsets == sorted(offsets)
    assert offsets[-1] < len(text)


def test_logprobs(server: Running, model: ServedModel) -> None:
    assert model.tokenizer is not None
    answer = server.openai.completions.create(
        model="tiny", prompt=PROMPT, seed=7, logprobs=3, max_tokens=12
    )
    text, found = answer.choices[0].text, answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.top_logprobs is not None
    assert found.token_logprobs is not None
    assert found.text_offset is not None
    assert len(found.tokens) == len(found.text_offset) == 12
    for token, logprob, likeliest, offset in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True
    ):
        assert likeliest[token] == logprob
        assert 3 <= len(likeliest) <= 4
        assert max(likeliest.values()) <= 0
        if not token.startswith("token_id:"):
            assert text[offset:].startswith(token)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(
    server: Running, model: ServedModel, stream: bool
) -> None:
    assert model.tokenizer is not None
    prompt = "the cat sit 12 345 the hat"
    ids = model.tokenizer.encode(prompt).tolist()
    answer = server.openai.completions.create(
        model="tiny", prompt=prompt, echo=True, logprobs=1, max_tokens=2, seed=1, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    text = "".join(choice.text for choice in choices)
    assert text == prompt + written(model, prompt, n=2, seed=1)
    tokens, logprobs, offsets = (
        [entry for choice in choices if choice.logprobs for entry in getattr(choice.logprobs, name)]
        for name in ("tokens", "token_logprobs", "text_offset")
    )
    assert len(tokens) == len(ids) + 2
    assert logprobs[0] is None
    assert logprobs[1 : len(ids)] == pytest.approx(score(model.network, ids).tolist(), abs=1e-5)
    for token, offset in zip(tokens[: len(ids)], offsets, strict=False):
        assert text[offset:].startswith(token)
    assert offsets[len(ids)] == len(prompt)


def test_echo_alone(server: Running) -> None:
    answer = server.complete(prompt=[[5, 6], [7, 8]], echo=True, max_tokens=0, logprobs=2).json()
    assert len(answer["choices"]) == 2
    assert answer["choices"][0]["text"] == "&'"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][1]["logprobs"]["tokens"]) == 2
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}
    plain = server.complete(prompt=PROMPT, echo=True, max_tokens=0, stream=True)
    assert f'"text":"{PROMPT}"' in plain.text


def test_end_of_text_ends(server: Running, model: ServedModel) -> None:
    assert model.tokenizer is not None
    force = {str(model.tokenizer.eos_token_id): 100}
    answer = server.openai.completions.create(model="tiny", prompt=PROMPT, logit_bias=force)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_models(server: Running, folder: Path) -> None:
    (model,) = server.openai.models.list().data
    assert model.id == server.openai.models.retrieve("tiny").id == "tiny"
    weights = server.http.get("/v1/models").json()["data"][0]["sha256"]
    assert weights == {"model.safetensors": sha256(folder / "model.safetensors")}
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        server.openai.models.retrieve("gpt-4")


def test_replaced_weights_do_not_matter(
    folder: Path, tmp_path: Path, start: Callable[..., Running], model: ServedModel
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    server = start(ServedModel.load(str(tmp_path), "cpu", "copy"))
    before = server.http.get("/v1/models").json()
    weights = tmp_path / "model.safetensors"
    weights.with_suffix(".new").write_bytes(bytes(weights.stat().st_size))
    weights.with_suffix(".new").replace(weights)
    answer = server.openai.completions.create(model="copy", prompt=PROMPT, seed=3)
    assert answer.choices[0].text == written(model, seed=3)
    assert server.http.get("/v1/models").json() == before


def test_without_tokenizer(start: Callable[..., Running], model: ServedModel) -> None:
    server = start(ServedModel("bare", model.network))
    ids = server.complete(prompt=[1, 2, 3], seed=1, max_tokens=5, logprobs=1, echo=True).json()
    choice = ids["choices"][0]
    assert choice["text"] == ""
    assert choice["token_ids"][:3] == [1, 2, 3]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    assert ids["usage"]["completion_tokens"] == 5
    events = server.complete(prompt=[1, 2, 3], seed=1, max_tokens=5, stream=True).text.split("\n\n")
    told = [json.loads(event[6:])["choices"][0]["token_ids"] for event in events[:-2]]
    assert [token for ids in told for token in ids] == choice["token_ids"][3:]
    for body in ({"prompt": "text"}, {"prompt": [1], "stop": "x"}):
        answer = server.complete(**body)
        assert answer.status_code == 400
        assert "no tokenizer" in answer.json()["error"]["message"]


def test_chat(start: Callable[..., Running], model: ServedModel) -> None:
    server = start(
        dataclasses.replace(model, template=ChatTemplate(TEMPLATE, {"eos_token": "<|endoftext|>"}))
    )
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "sit"}]}]
    answer = server.openai.chat.completions.create(
        model="tiny", messages=messages, seed=1, max_completion_tokens=10
    )
    text = written(model, "u: sit<|endoftext|>a:", n=10, seed=1)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    stream = server.openai.chat.completions.create(
        model="tiny", messages=messages, seed=1, max_tokens=10, stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == text
    whole = server.openai.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert whole.usage is not None
    assert whole.choices[0].finish_reason == "stop" or whole.usage.total_tokens == 48
    for fault, extra in (
        ("no tools", {"messages": [{"role": "tool", "content": "x"}]}),
        ("tools is not supported", {"tools": [{"type": "function"}]}),
        ("context is 48", {"messages": [{"role": "user", "content": "sit " * 60}]}),
    ):
        refused = server.http.post("/v1/chat/completions", json={"messages": messages, **extra})
        assert refused.status_code == 400
        assert fault in refused.json()["error"]["message"]


def test_chat_without_template(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="carries no chat template") as caught:
        server.openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}]
        )
    assert caught.value.code == "no_chat_template"
