"""What may be asked: the bodies of OpenAI's requests, strictly typed and bounded.

Null is what is not given. Names that OpenAI does not know are passed over, as are its own that change
no text; its other fields, which this server does not have, are refused unless they ask for nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from gptfit.config.checks import shown
from gptfit.serve.refusal import Refusal

MAX_N = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 300
MAX_LOGPROBS = 5
MAX_SEED = 2**63 - 2**17
MAX_MESSAGES = 1024

Prompt = str | list[int]


def as_prompts(value: Any) -> list[Prompt]:
    """OpenAI's four forms of ``prompt`` as a list of texts or lists of ids."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(map(_is_ids, value)):
            return value
        if value and all(item == [] for item in value):
            raise ValueError("a list of token ids needs at least one")
    raise ValueError("must be a string, a list of strings, of token ids, or of lists of token ids")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def as_stops(value: Any) -> list[str]:
    """One stop string, several or none."""
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings, not {len(stops)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
    return stops


def as_bias(value: Any) -> dict[int, float]:
    """JSON's keys are strings; these are token ids."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"must be an object of at most {MAX_BIASES} token ids")
    for key, bias in value.items():
        if not re.fullmatch("[0-9]{1,9}", key):
            raise ValueError(f"{shown(key)} is no token id")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {key} must be a number from -100 to 100")
    return {int(key): float(bias) for key, bias in value.items()}


def as_text(value: Any) -> Any:
    """A message's content: a string, or OpenAI's list of text parts."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            raise ValueError("only parts of type text are understood")
        texts = [part.get("text") for part in value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a part of type text has a string as its text")
        return "".join(texts)
    return value


class StreamOptions(BaseModel):
    """``include_usage`` asks for a last chunk with the counts."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class Sampling(BaseModel):
    """What both kinds of request have in common; the ranges are OpenAI's where it has the field."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """OpenAI's fields that are not implemented, each with the values that ask for nothing."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[int, float], BeforeValidator(as_bias, dict[str, float] | None)] = (
        Field({}, validate_default=False)
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Annotated[list[str], BeforeValidator(as_stops, str | list[str] | None)] = []
    max_tokens: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    SAMPLED: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    )
    """The fields that ``SamplingOptions`` has under the same name."""

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Refuse what is understood but not done, rather than pass over it."""
        given = self.model_extra or {}
        for name, harmless in self.unsupported.items():
            value = given.get(name)
            if not any(type(value) is type(one) and value == one for one in (None, *harmless)):
                raise Refusal(
                    400,
                    f"{name} is not supported by this server; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options needs stream=true", param="stream_options")


class CompletionRequest(Sampling):
    """The body of ``/v1/completions``."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(as_prompts, str | list[str] | list[int] | list[list[int]]),
    ]
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    def check(self) -> None:
        """See ``Sampling.check``."""
        super().check()
        if self.best_of not in (None, self.n or 1):
            raise Refusal(
                400,
                f"best_of={self.best_of} is not supported; leave it out, or choose among n yourself",
                param="best_of",
                code="unsupported_parameter",
            )
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(
                400, "max_tokens=0 must be at least 1 (0 only with echo)", param="max_tokens"
            )


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True)
    role: str = Field(min_length=1, max_length=64)
    content: Annotated[str, BeforeValidator(as_text, str | list[dict[str, Any]])]
    name: str | None = None


class ChatRequest(Sampling):
    """The body of ``/v1/chat/completions``."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)

    def check(self) -> None:
        """See ``Sampling.check``."""
        super().check()
        if self.max_tokens == 0:
            raise Refusal(400, "max_tokens=0 must be at least 1", param="max_tokens")


Body = TypeVar("Body", bound=Sampling)


def parse(kind: type[Body], body: bytes) -> Body:
    """The request in ``body``, or a ``Refusal`` that names the fields at fault."""
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, f"the body is {shown(values)}, not an object", code="invalid_json")
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None
    request.check()
    return request


def _refusal(error: ValidationError) -> Refusal:
    problems = error.errors(include_url=False, include_context=False)
    texts, first = [], ""
    for problem in problems[:3]:
        field = ".".join(str(part) for part in problem["loc"])[:200]
        first = first or field
        message = problem["msg"].removeprefix("Value error, ")
        value = "" if problem["type"] == "missing" else f"={shown(problem['input'])}"
        texts.append(f"{field}{value}: {message[:1].lower()}{message[1:]}")
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Refusal(400, "; ".join(texts) + more, param=first)
