"""What lint looks at: from words on the command line to a subject of the rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfit.cli.configs import read_recipe
from gptfit.config import GPT2Config, Recipe, find_preset
from gptfit.errors import ConfigError
from gptfit.plan import lint as linter
from gptfit.plan.lint import DataFacts, Finding, Pretrained, Program, Subject
from gptfit.plan.lint.rewrite import inline_ignores

if TYPE_CHECKING:
    from gptfit.data import TokenDataset
    from gptfit.plan.hardware import DeviceSpec


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    paths: tuple[str, ...]
    overrides: tuple[str, ...]
    data: DataFacts | None
    device: DeviceSpec | None
    start: Pretrained | None
    program: Program | None
    select: tuple[str, ...]
    ignore: tuple[str, ...]

    @property
    def file(self) -> Path | None:
        """The file that is linted, if it is one."""
        path = Path(self.paths[0]) if len(self.paths) == 1 else None
        return path if path is not None and path.is_file() else None

    @property
    def ignored(self) -> list[str]:
        """Rules left out on the command line and in the file."""
        comments = self.file is not None and self.file.suffix.lower() == ".toml"
        text = self.file.read_text(encoding="utf-8") if comments and self.file else ""
        return [*self.ignore, *inline_ignores(text)]

    def subject(self, overrides: Sequence[str]) -> Subject:
        """The recipe with these overrides, and all that is known beside it."""
        recipe, kind = read_recipe([*self.paths, *overrides])
        subject = self.about(recipe, self._pretrained(kind))
        return with_run(subject, Path(self.paths[0])) if kind == "run" else subject

    def about(self, recipe: Recipe, pretrained: Pretrained | None) -> Subject:
        """This recipe with all that is known beside it."""
        return Subject(
            recipe=recipe,
            data=self.data,
            device=self.device,
            pretrained=pretrained,
            program=self.program,
        )

    def _pretrained(self, kind: str) -> Pretrained | None:
        """The weights named by --from, else those of the checkpoint that is linted itself."""
        if self.start is None and kind == "checkpoint":
            return find_pretrained(self.paths[0], self.data is not None)
        return self.start

    def findings(self, overrides: Sequence[str] | None = None) -> list[Finding]:
        """What there is to say; the faults of a configuration that cannot run are said alone."""
        try:
            subject = self.subject(self.overrides if overrides is None else overrides)
        except ConfigError as error:
            return hard_findings(error)
        return linter.lint(subject, select=self.select, ignore=self.ignored)

    def findings_of(self, document: dict[str, Any]) -> list[Finding]:
        """The same for the parsed content of a file."""
        try:
            recipe = Recipe.from_dict(document, f"file {self.file}")
        except ConfigError as error:
            return hard_findings(error)
        return linter.lint(
            self.about(recipe, self._pretrained("file")), select=self.select, ignore=self.ignored
        )


def hard_findings(error: ConfigError) -> list[Finding]:
    """The error's problems as findings; an error that is not about values stays an error."""
    findings = linter.hard_findings(error)
    if not any(finding.field for finding in findings):
        raise error
    return findings


def with_run(subject: Subject, run: Path) -> Subject:
    """The subject with what a run knows: its data, and the first loss that it logged."""
    data = subject.data
    if data is None and (run / "data" / "train.bin").is_file():
        data = data_facts([str(run / "data")])
    return replace(subject, data=data, first_loss=first_loss(run / "metrics.jsonl"))


def first_loss(metrics: Path) -> float | None:
    """The loss of the first step that was logged, in nats per token."""
    if not metrics.is_file():
        return None
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # a line that was cut off
                continue
            if isinstance(event, dict) and event.get("event") == "step":
                return float(event["loss"])
    return None


def find_known_device(name: str | None) -> DeviceSpec | None:
    """The device that was named, if one was."""
    from gptfit.plan.hardware import find_device

    return find_device(name) if name else None


def find_pretrained(name: str, with_tokenizer: bool = False) -> Pretrained:
    """The config of a checkpoint, a run or a config file here, or of a preset (gpt2)."""
    path = Path(name)
    if (path / "checkpoints").is_dir():
        from gptfit.formats.locate import find_checkpoint

        path = find_checkpoint(path)
    if not path.exists():
        if path.name != name:
            raise ConfigError(f"--from {name}: no such run, checkpoint folder or config file")
        return Pretrained(find_preset(name).config)
    config = GPT2Config.from_file(path)
    if not with_tokenizer or not (path / "tokenizer.json").is_file():
        return Pretrained(config)
    from gptfit.data import Tokenizer

    return Pretrained(config, Tokenizer.load(path).fingerprint)


def data_facts(names: list[str]) -> DataFacts | None:
    """What --data tells: all about prepared tokens, of text only the size."""
    if not names:
        return None
    folder = Path(names[0])
    if len(names) > 1 or not (folder / "train.bin").is_file():
        from gptfit.data import TextSource

        return DataFacts(text_bytes=TextSource.from_paths(names, "text").total_bytes)
    from gptfit.data import TokenDataset

    return facts_of(TokenDataset.open(folder))


def facts_of(dataset: TokenDataset) -> DataFacts:
    """What a data set tells the rules."""
    sizes = (dataset.train_text_bytes, dataset.val_text_bytes)
    known = [size for size in sizes if size is not None]
    return DataFacts(
        train_tokens=int(dataset.train.size),
        val_tokens=int(dataset.val.size),
        vocab_size=dataset.tokenizer.vocab_size,
        tokenizer=dataset.tokenizer.fingerprint,
        tokenizer_kind=dataset.tokenizer.kind,
        text_bytes=sum(known) if len(known) == len(sizes) else None,
        token_dtype=dataset.train.dtype.name,
    )
