"""Loss curves: which unit is fair, what is drawn, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gptfit.errors import CheckpointError, ConfigError
from gptfit.train.picture import MOST_CURVES, Curve, _names, _smoothed, compare, draw_loss
from written_run import saved, started, stepped, told, write_run

PNG = b"\x89PNG"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "one", told(3.0, 2.0, 2.5))


@pytest.mark.parametrize(
    ("x", "places"),
    [("steps", [10, 20, 30]), ("tokens", [1600, 3200, 4800]), ("seconds", [5.0, 10.0, 15.0])],
)
def test_curve(tmp_path: Path, x: str, places: list[float]) -> None:
    run = write_run(tmp_path / "run", told(3.0, 2.0, 2.5), "n_positions=16", "batch_size=10")
    curve = Curve.read(run, x)
    assert curve.validation == list(zip(places, [3.0, 2.0, 2.5], strict=True))
    assert [loss for _, loss in curve.training] == [2.9, 1.9, 2.4]
    assert curve.best == (places[1], 2.0)
    assert curve.bits_per_nat == 1.5


@pytest.mark.parametrize("x", ["steps", "tokens", "seconds"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_one_tokenizer_is_compared_in_nats(run: Path, tmp_path: Path, x: str, suffix: str) -> None:
    other = write_run(tmp_path / "$other_$5 ünï", told(3.0, 1.0))
    assert not compare([run, other], tmp_path / f"a.{suffix}", x)
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content.startswith(PNG if suffix == "png" else b"<?xml")


def test_several_tokenizers_are_compared_in_bits(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", told(6.0, 4.0), tokenizer="another")
    assert compare([run, other], tmp_path / "a.svg")
    (write_run(tmp_path / "none", told(3.0)) / "checkpoints/last.json").unlink()
    assert compare([run, tmp_path / "none"], tmp_path / "a.svg")  # unknown counts as different
    assert not compare([other], tmp_path / "a.svg")


def test_without_the_size_of_the_text_tokenizers_cannot_be_compared(
    run: Path, tmp_path: Path
) -> None:
    from written_run import evaluated

    bare = [started(), stepped(10), evaluated(10, 3.0, bits=False), saved(10)]
    other = write_run(tmp_path / "bare", bare, tokenizer="another")
    with pytest.raises(
        CheckpointError, match=r"bits per byte of .*bare are not known; plot it alon"
    ):
        compare([run, other], tmp_path / "a.png")
    assert not compare([other], tmp_path / "a.png")


def test_without_an_evaluation_there_is_nothing_to_compare(run: Path, tmp_path: Path) -> None:
    fresh = write_run(tmp_path / "fresh", [started(), stepped(5)])
    with pytest.raises(CheckpointError, match="fresh has no evaluation yet"):
        compare([run, fresh], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    draw_loss(fresh, tmp_path / "a.png")  # its own picture shows what there is
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no run that has begun: metrics\.jsonl"):
        compare([run, tmp_path / "nowhere"], tmp_path / "a.png")
    (run / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged: an event lacks 'loss'"):
        compare([run], tmp_path / "a.png")


def test_more_curves_than_colours(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"25 curves cannot be told apart; choose up to {24}"):
        compare([run] * (MOST_CURVES + 1), tmp_path / "a.png")


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    events = [*told(3.0, 2.0), stepped(25, math.nan), stepped(30, math.inf)]
    run = write_run(tmp_path / "run", events)
    assert len(Curve.read(run).training) == 2
    draw_loss(run, tmp_path / "a.png")


def test_a_curve_that_ends_above_the_frame_leaves_the_picture_its_room(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "long", told(2.0, 1.99)),
        write_run(tmp_path / "one evaluation", told(4.0)),
    ]
    compare(runs, tmp_path / "a.png")  # matplotlib warns where the axes collapse


def test_smoothing_keeps_the_ends_and_the_mean() -> None:
    noisy = [(float(n), 2.0 + (-1) ** n) for n in range(100_000)]
    smooth = _smoothed(noisy)
    assert len(smooth) <= 2001
    assert smooth[-1][0] == 99_999
    assert all(abs(loss - 2.0) < 0.01 for _, loss in smooth[10:])
    assert _smoothed(noisy[:20]) == noisy[:20]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert _names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert _names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]
    assert _names([Path("y" * 40)]) == ["…" + "y" * 31]
