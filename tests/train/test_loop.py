"""What a run meets: numbers that are not finite, too little memory, full disks, wishes to leave."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gptfit.errors import CheckpointError
from gptfit.generate import Evaluation
from gptfit.model.out_of_memory import is_out_of_memory
from gptfit.train import examination
from gptfit.train import run as runs
from gptfit.train.anomaly import MemoryExhaustedError, TrainingDivergedError
from gptfit.train.events import (
    Event,
    MetricsFile,
    MicroBatchHalved,
    NonFinite,
    Saved,
    SaveFailed,
    Stepped,
)
from gptfit.train.interrupt import Interrupt
from gptfit.train.loop import Trainer
from gptfit.train.saving import SavingFailedError
from interruptions import LEAVE, At, differences, told
from tiny_run import finish, make_trainer

QUICK = ["log_interval=1", "sample_interval=0"]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints/last/model.safetensors")


def assert_equal_weights(run: Path, other: Path) -> None:
    theirs = weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(run).items())


def poison(trainer: Trainer, batches: Iterable[int], value: float = float("nan")) -> list[int]:
    """Make one number of the gradient of these batches ``value``; gives the batches as they come."""
    original, seen = trainer.step._accumulate, []

    def accumulate(number: int) -> Tensor:
        loss = original(number)
        seen.append(number)
        if number in batches:
            trainer.model.h[1].mlp.c_fc.bias.grad[3] = value
        return loss

    trainer.step._accumulate = accumulate
    return seen


def renumber(trainer: Trainer, number_of: Callable[[int], int]) -> None:
    """Give step ``n`` the batch ``number_of(n)``."""
    original = trainer.step.gradients
    trainer.step.gradients = lambda number: original(number_of(number))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_stop_is_before_the_update_and_names_batch_and_checkpoint(
    tmp_path: Path, value: float
) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)
    poison(trainer, [6], value)
    seen: list[Event] = []
    with pytest.raises(
        TrainingDivergedError, match=r"batch 6 .* after step 6: .*before the update; .*/last\. "
    ) as raised:
        finish(trainer, seen.append)
    assert raised.value.exit_code == 1
    assert isinstance(seen[-1], NonFinite)
    assert (seen[-1].step, seen[-1].batch, seen[-1].action) == (6, 6, "stop")
    assert seen[-1].loss is not None
    assert seen[-1].grad_norm is None
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    assert told(tmp_path / "run")[-1]["event"] == "nonfinite"


def test_a_gradient_of_any_parameter_is_seen(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    original = trainer.step._accumulate
    for name, parameter in trainer.model.named_parameters():

        def accumulate(number: int, parameter: torch.nn.Parameter = parameter) -> Tensor:
            trainer.step.drop_gradients()
            loss = original(number)
            assert parameter.grad is not None
            parameter.grad.view(-1)[-1] = float("nan")
            return loss

        trainer.step._accumulate = accumulate
        assert not trainer.step.gradients(0).are_finite, name
    trainer.step.drop_gradients()
    trainer.step._accumulate = original
    assert trainer.step.gradients(0).are_finite


def test_skip_skips_exactly_one_batch(tmp_path: Path) -> None:
    skipping = make_trainer(tmp_path / "skipping", *QUICK, "on_nonfinite=skip")
    batches = poison(skipping, [6])
    seen: list[Event] = []
    finish(skipping, seen.append)
    assert batches == list(range(13))
    assert [event.step for event in seen if isinstance(event, NonFinite)] == [6]
    assert [event.step for event in seen if isinstance(event, Stepped)] == list(range(1, 13))
    assert skipping.state.batches_skipped == 1
    without = make_trainer(tmp_path / "without", *QUICK)
    renumber(without, lambda number: number + (number >= 6))
    finish(without)
    assert_equal_weights(tmp_path / "skipping", tmp_path / "without")


def test_a_run_that_skips_resumes_exactly(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path / "straight", "on_nonfinite=skip")
    poison(straight, [2, 6, 7])
    finish(straight)
    trainer = make_trainer(tmp_path / "run", "on_nonfinite=skip")
    for asked in (4, 9, 3):  # before, at and behind the batches that are skipped
        poison(trainer, [2, 6, 7])
        trainer.run(lambda event: None, At(asked, LEAVE))
        trainer = runs.resume(tmp_path / "run")
    poison(trainer, [2, 6, 7])
    finish(trainer)
    assert differences(tmp_path / "run", tmp_path / "straight") == []
    assert [
        event["batch"] for event in told(tmp_path / "run") if event["event"] == "nonfinite"
    ] == [
        2,
        6,
        7,
    ]


def test_rewind_goes_on_behind_the_batches_since_the_checkpoint(tmp_path: Path) -> None:
    rewinding = make_trainer(tmp_path / "rewinding", *QUICK, "on_nonfinite=rewind")
    batches = poison(rewinding, [6])
    finish(rewinding)
    assert batches == [*range(7), *range(7, 15)]
    assert rewinding.state.batches_skipped == 3
    without = make_trainer(tmp_path / "without", *QUICK)
    renumber(without, lambda number: number + 3 * (number >= 4))
    finish(without)
    assert_equal_weights(tmp_path / "rewinding", tmp_path / "without")
    events = told(tmp_path / "rewinding")
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, 13))
    assert [event["action"] for event in events if event["event"] == "nonfinite"] == ["rewind"]


def test_rewind_passes_over_a_damaged_checkpoint_and_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, "on_nonfinite=rewind")
    batches = poison(trainer, [10])
    seen: list[Event] = []

    def damage(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Saved) and event.step == 8:
            path = tmp_path / "run/checkpoints/step-000008/model.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    assert finish(trainer, damage).step == 12
    assert batches == [*range(11), *range(11, 19)]  # on from step 4
    (met,) = (event for event in seen if isinstance(event, NonFinite))
    (text,) = met.damaged
    assert "step-000008/model.safetensors" in text
    assert text.endswith("falling back to step-000004")
    written = MetricsFile(tmp_path / "run/metrics.jsonl").read()
    assert [event["damaged"] for event in written if event["event"] == "nonfinite"] == [[text]]
    steps = [event["step"] for event in written if event["event"] == "step"]
    assert steps == list(range(1, 13))


def test_rewind_without_a_checkpoint_stops(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "on_nonfinite=rewind")
    poison(trainer, [2])
    with pytest.raises(TrainingDivergedError, match="no checkpoint had been written yet"):
        finish(trainer)


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_too_many_in_a_row_stop(tmp_path: Path, action: str) -> None:
    trainer = make_trainer(
        tmp_path / "run", *QUICK, f"on_nonfinite={action}", "max_nonfinite=3", "max_steps=30"
    )
    # Between the rewinds there are good steps, which lead nowhere.
    poison(trainer, range(7, 40) if action == "skip" else [7, 11, 14, 18])
    seen: list[Event] = []
    with pytest.raises(TrainingDivergedError):
        finish(trainer, seen.append)
    met = [event.action for event in seen if isinstance(event, NonFinite)]
    assert met == [action, action, "stop"]


def test_those_that_are_not_in_a_row_do_not_add_up(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, "on_nonfinite=skip", "max_nonfinite=2")
    poison(trainer, [2, 4, 6, 8])
    assert finish(trainer).step == 12
    assert trainer.state.batches_skipped == 4


def test_an_evaluation_that_is_not_finite_rewinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, "on_nonfinite=rewind")
    batches, original = poison(trainer, []), trainer.examiner.evaluate
    losses = iter([None, float("nan")])

    def evaluate(*arguments: object) -> Evaluation:
        found = original(*arguments)
        return Evaluation(next(losses, None) or found.loss, found.tokens)

    monkeypatch.setattr(trainer.examiner, "evaluate", evaluate)
    outcome = finish(trainer)
    assert outcome.step == 12
    assert batches == list(range(16))  # steps 5 to 8 came to nothing
    evaluated = [e["step"] for e in told(tmp_path / "run") if e["event"] == "evaluation"]
    assert evaluated == [4, 8, 12]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)
    interrupt = Interrupt()

    def spoil(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            with torch.no_grad():
                trainer.model.wpe.weight[3, 1] = float("inf")
            interrupt.is_set = True

    with pytest.raises(TrainingDivergedError, match="a weight is not finite after step 6"):
        trainer.run(spoil, interrupt)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    assert runs.resume(tmp_path / "run").state.step == 4


def exhaust(trainer: Trainer, most: int, training: bool = True, after: int = 0) -> None:
    """Let the memory suffice for ``most`` sequences at a time, and for the first ``after`` passes."""
    passes = 0

    def limit(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += module.training == training
        if module.training == training and len(arguments[0]) > most and passes > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.register_forward_pre_hook(limit)


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)  # two of two
    exhaust(trainer, 1, after=7)  # in the second half of the fourth batch
    seen: list[Event] = []
    finish(trainer, seen.append)
    halved = [event for event in seen if isinstance(event, MicroBatchHalved)]
    assert halved == [MicroBatchHalved(step=3, micro_batch_size=1, grad_accum_steps=4)]
    configured = make_trainer(tmp_path / "configured", *QUICK)
    original = configured.step.gradients

    def gradients(number: int) -> object:
        configured.step.limit_micro_batch(2 if number < 3 else 1)
        return original(number)

    configured.step.gradients = gradients
    finish(configured)
    assert differences(tmp_path / "run", tmp_path / "configured") == []


def test_out_of_memory_finds_a_size_that_divides_the_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, "batch_size=6", "micro_batch_size=6")
    exhaust(trainer, 2)
    seen: list[Event] = []
    finish(trainer, seen.append)
    sizes = [event.micro_batch_size for event in seen if isinstance(event, MicroBatchHalved)]
    assert sizes == [3, 1]


def test_a_resumed_run_keeps_the_size_that_fits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = make_trainer(run, "max_steps=4")
    exhaust(trainer, 1)
    finish(trainer)
    resumed = runs.resume(run, ["max_steps=6"])
    assert resumed.step.micro_batch_size == 1
    finish(resumed)
    assert runs.resume(run, ["max_steps=8"]).step.micro_batch_size == 1
    assert runs.resume(run, ["max_steps=8", "micro_batch_size=4"]).step.micro_batch_size == 4


def test_no_memory_for_a_single_sequence(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    exhaust(trainer, 0, after=10)
    with pytest.raises(
        MemoryExhaustedError,
        match=r"micro_batch_size=1; .*/last\. checkpointed_blocks=2, loss_chunks=2 .*`gptfit plan`",
    ):
        finish(trainer)
    assert runs.resume(tmp_path / "run").state.step == 4


def test_out_of_memory_in_an_evaluation_leaves_training_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)
    exhaust(trainer, 2, training=False)
    finish(trainer)
    finish(make_trainer(tmp_path / "straight", *QUICK))
    assert_equal_weights(tmp_path / "run", tmp_path / "straight")
    ours, theirs = (told(tmp_path / name) for name in ("run", "straight"))
    assert [e for e in ours if e["event"] == "step"] == [e for e in theirs if e["event"] == "step"]
    losses = ([e["loss"] for e in all if e["event"] == "evaluation"] for all in (ours, theirs))
    assert next(losses) == pytest.approx(next(losses), abs=1e-6)


def test_the_allocators_own_words_are_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**56, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def break_saves(trainer: Trainer, steps: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when these steps are saved."""
    original = trainer.checkpoints._put

    def put(folder: Path, *arguments: object) -> None:
        if int(folder.name.removeprefix("step-")) in steps:
            raise OSError(28, "No space left on device")
        original(folder, *arguments)

    monkeypatch.setattr(trainer.checkpoints, "_put", put)


@pytest.mark.parametrize("background", ["true", "false"])
def test_training_goes_on_after_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: str
) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, f"async_checkpoints={background}")
    break_saves(trainer, [8], monkeypatch)
    seen: list[Event] = []
    finish(trainer, seen.append)
    failed = [event for event in seen if isinstance(event, SaveFailed)]
    assert [event.step for event in failed] == [8]
    assert "No space left on device" in failed[0].message
    assert [event.step for event in seen if isinstance(event, Saved)] == [4, 12]


def test_the_best_is_one_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)
    break_saves(trainer, [8], monkeypatch)
    losses = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(trainer.examiner, "evaluate", lambda *_: Evaluation(next(losses, 2.5), 10))
    assert finish(trainer).best_step == 12
    assert (tmp_path / "run/checkpoints/best").resolve().name == "step-000012"


def test_the_third_failure_in_a_row_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK, "max_steps=40")
    break_saves(trainer, [8, 16, 20, 24], monkeypatch)
    with pytest.raises(SavingFailedError, match=r"No space left.*is whole: .*/last") as raised:
        finish(trainer)
    assert raised.value.exit_code == 1
    assert 24 <= trainer.state.step < 28
    assert runs.resume(tmp_path / "run").state.step == 12


@pytest.mark.parametrize("step", [6, 12])
def test_the_last_save_of_a_run_may_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)
    break_saves(trainer, [step], monkeypatch)
    interrupt = Interrupt()

    def leave(event: Event) -> None:
        if step < 12 and event.step >= step:  # an earlier save may be told later
            interrupt.is_set = True

    with pytest.raises(SavingFailedError, match=r"the last checkpoint is whole") as raised:
        trainer.run(leave, interrupt)
    assert raised.value.exit_code == 1


def test_no_space_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes and 1,000 bytes are free") as e:
        finish(trainer)
    assert e.value.exit_code == 2
    assert trainer.state.step == 0
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_checkpoint_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)

    def remove(event: Event) -> None:
        if isinstance(event, Saved) and event.step == 4:
            shutil.rmtree(tmp_path / "run/checkpoints")

    assert finish(trainer, remove).step == 12
    assert runs.resume(tmp_path / "run", ["max_steps=14"]).state.step == 12


def test_a_run_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", *QUICK)

    def remove(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            trainer.checkpoints.wait()  # else what is removed is being written
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointError, match=str(tmp_path / "run")):
        finish(trainer, remove)


@pytest.mark.parametrize("where", ["evaluate", "SampleWriter.write"])
def test_an_evaluation_or_sample_is_given_up_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    finish(make_trainer(tmp_path / "straight"))
    trainer, interrupt = make_trainer(tmp_path / "run"), Interrupt()
    name = f"gptfit.train.examination.{where}"
    original = _resolve(where)

    def late(*arguments: object) -> object:
        interrupt.is_set = trainer.state.step == 8
        return original(*arguments)

    monkeypatch.setattr(name, late)
    seen: list[Event] = []
    outcome = trainer.run(seen.append, interrupt)
    monkeypatch.undo()
    assert outcome.interrupted
    assert outcome.step == 8
    assert seen[-1] == Saved(8, "step-000008")
    assert [event.step for event in seen if event.kind == "evaluation"] == [4]
    assert trainer.model.training
    finish(runs.resume(tmp_path / "run"))
    assert differences(tmp_path / "run", tmp_path / "straight") == []


def _resolve(where: str) -> Callable[..., object]:
    return reduce(getattr, where.split("."), examination)


def test_an_interrupt_of_the_last_evaluation_leaves_a_run_to_be_resumed(tmp_path: Path) -> None:
    finish(make_trainer(tmp_path / "straight", "eval_interval=100"))
    trainer, interrupt = make_trainer(tmp_path / "run", "eval_interval=100"), Interrupt()

    def leave(event: Event) -> None:
        interrupt.is_set = isinstance(event, Stepped) and event.step == 12

    outcome = trainer.run(leave, interrupt)
    assert outcome.interrupted
    assert outcome.step == 12
    resumed = finish(runs.resume(tmp_path / "run"))
    assert resumed.best is not None
    assert differences(tmp_path / "run", tmp_path / "straight") == []


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def weight_of(trainer: Trainer, end: str) -> weakref.ref[Tensor]:
    """A weight of a trainer that nobody holds any more, after its run has come to this end."""

    def spoil(event: Event) -> None:
        if end == "diverged" and event.step == 6:
            with torch.no_grad():
                trainer.model.wpe.weight.fill_(float("nan"))

    if end != "not begun":
        with suppress(TrainingDivergedError):
            finish(trainer, spoil)
    assert trainer.state.step == {"finished": 12, "diverged": 6, "not begun": 0}[end]
    trainer.lock.release()
    return weakref.ref(trainer.model.wte.weight)


@pytest.mark.usefixtures("_no_garbage_collection")
@pytest.mark.parametrize("overrides", [[], ["optimizer=adamw", "async_checkpoints=false"]])
@pytest.mark.parametrize("end", ["not begun", "finished", "diverged"])
def test_the_memory_of_a_trainer_is_free_when_nobody_holds_it(
    tmp_path: Path, overrides: list[str], end: str
) -> None:
    # With compile=on it is not: Module.compile keeps a method of the module within the module.
    weight = weight_of(make_trainer(tmp_path / "run", *overrides), end)
    assert weight() is None


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    class Lock:
        released = False

        def release(self) -> None:
            self.released = True

    trainer = make_trainer(tmp_path / "run")
    trainer.lock.release()
    trainer.lock = Lock()
    poison(trainer, [1])
    with pytest.raises(TrainingDivergedError):
        finish(trainer)
    assert trainer.lock.released
