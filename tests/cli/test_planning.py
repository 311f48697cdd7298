"""devices, plan."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command_line import call
from example_plan import example_plan
from gptfit.cli.planning import parse_price, parse_tokens
from gptfit.cli.screen import BAR_WIDTH, components, print_plan, waterfall_bar
from gptfit.errors import ConfigError
from gptfit.plan.hardware import GIB, devices
from gptfit.plan.interval import Interval
from gptfit.plan.plan import Price


def screen(plan: Any, colour: bool = False) -> str:
    """What a terminal of 100 columns would show."""
    file = io.StringIO()
    console = Console(
        file=file, width=100, force_terminal=colour, color_system="standard" if colour else None,
        highlight=False, markup=False,
    )  # fmt: skip
    print_plan(console, plan, "gptfit train gpt2 --data FILE")
    return file.getvalue()


def test_devices() -> None:
    out = call("devices").out
    lines = out.splitlines()
    assert all(any(line.startswith(device.name) for line in lines) for device in devices())
    rtx = next(line for line in lines if line.startswith("RTX 4090"))
    assert rtx.split()[2:] == [
        "23.5", "1,008", "82.6", "82.6", "165.2", "165.2", "330", "32", "450", "datasheet",
    ]  # fmt: skip
    t4 = next(line for line in lines if line.startswith("T4"))
    assert t4.split()[5] == "no"
    assert "this machine: " in out


def test_devices_json() -> None:
    values = call("devices", "--json").json
    assert len(values["devices"]) == len(devices())
    h200 = next(row for row in values["devices"] if row["name"] == "H200 SXM")
    assert h200["bandwidth"] == 4.8e12
    assert h200["peak_flops"]["bfloat16"] == 989e12
    assert h200["source"]
    assert h200["confidence"] == "datasheet"
    assert values["this_machine"][0]["kind"] == "cpu"


def test_screen_says_everything_in_thirty_lines() -> None:
    out = screen(example_plan())
    lines = out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("FITS  gpt2 on RTX 4090")
    for fact in (
        "124,439,808 parameters · batch 12 × 1,024 tokens · bfloat16 · eager",
        "13.0 GiB (12.5 to 14.2) of 23.5 GiB usable",
        "21 sequences of 1,024 tokens at once",
        "100 ms (90.0 to 120)",
        "123,000 (102,000 to 137,000), 38% of the peak",
        "854 MFLOPs per token",
        "2.00 hours (1.80 to 2.40) for 1.00 billion tokens, 81,400 steps",
        "0.720 kWh (0.650 to 0.860) · 0.800 USD (0.720 to 0.960)",
        "3.30 (3.20 to 3.50) nats/token by a law",
        "helps most     chunked loss: saves 5.00 GiB; no time worth a line",
        "time by roofline",
    ):
        assert fact in out
    assert "torch.compile" not in out
    assert lines[-1] == "next           gptfit train gpt2 --data FILE"


def test_screen_of_what_does_not_fit() -> None:
    ledger = example_plan().ledger
    total = Interval(25 * GIB, 26 * GIB, 27 * GIB)
    plan = example_plan(
        verdict="NO",
        largest_micro_batch=0,
        ledger=type(ledger)(ledger.phases, total, total),
        time=None,
        budget=None,
        loss=None,
    )
    out = screen(plan)
    assert out.startswith("NO  gpt2 on RTX 4090: it does not fit")
    assert "not even one sequence fits" in out
    assert "torch.compile: saves 2.00 GiB" in out
    assert "a fourth" not in out
    assert "step time      unknown" in out
    assert "USD" not in out
    assert "\x1b[1;31mNO" in screen(plan, colour=True)


def test_components_add_up() -> None:
    plan = example_plan()
    parts = components(plan)
    assert sum(parts.values()) == plan.ledger.total.best
    assert list(parts) == [
        "logits and loss", "activations", "weights", "optimizer", "allocator and context",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end", "columns"), [(0, 1, 44), (0, 0.5, 22), (0.5, 1, 44), (0.999, 1, 44)]
)
def test_bars_end_where_they_should(start: float, end: float, columns: int) -> None:
    assert len(waterfall_bar(start, end, limit=1).plain) == columns


def test_tiny_bars_show() -> None:
    assert waterfall_bar(0.25, 0.2500001, limit=1).plain == " " * (BAR_WIDTH // 4) + "▏"


def test_what_is_beyond_the_limit_is_red() -> None:
    bar = waterfall_bar(0, 1, limit=0.5)
    spans = {str(span.style): span.end - span.start for span in bar.spans}
    assert spans == {"cyan": 22, "red": 22}


def test_plan_fits_a_small_model() -> None:
    result = call("plan", "gpt2", "--device", "rtx4090", "--batch-size", "4", "max_steps=100")
    assert result.code == 0, result.err
    assert result.out.startswith("FITS  gpt2 on RTX 4090")
    assert "batch 4 × 1,024 tokens × 3 accumulated · bfloat16" in result.out
    assert len(result.out.splitlines()) <= 30
    assert (
        "gptfit train gpt2 max_steps=100 batch_size=12 micro_batch_size=4 --data FILE" in result.out
    )


def test_plan_json_is_the_same_object() -> None:
    values = call(
        "plan", "gpt2", "--device", "rtx4090", "--tokens", "1B", "--price", "2.50 USD", "--json"
    ).json
    assert values["verdict"] == "FITS"
    assert values["parameters"] == 124_439_808
    assert values["device"]["name"] == "RTX 4090"
    assert values["budget"]["tokens"] == 1e9
    assert values["budget"]["currency"] == "USD"
    assert values["budget"]["cost"]["best"] == pytest.approx(
        2.5 * values["budget"]["hours"]["best"]
    )
    assert values["ledger"]["total"]["low"] <= values["ledger"]["total"]["best"]
    assert {phase["name"] for phase in values["ledger"]["phases"]} >= {"forward", "loss backward"}


def test_the_batch_that_plan_offers_fits() -> None:
    first = call("plan", "gpt2", "--device", "rtx3060", "--batch-size", "64", "--json").json
    assert first["verdict"] == "NO"
    offered = call("plan", "gpt2", "--device", "rtx3060", "--batch-size", "64").out.splitlines()[-1]
    command = shlex.split(offered.removeprefix("next").strip())
    assert command[:3] == ["gptfit", "plan", "gpt2"]
    assert command[-2] == "--batch-size"
    assert first["largest_micro_batch"] / 2 < int(command[-1]) <= first["largest_micro_batch"]
    assert call(*command[1:], "--json").json["verdict"] == "FITS"


def test_where_no_batch_fits_the_offer_still_leads_on() -> None:
    out = call("plan", "gpt2-xl", "--device", "rtx4090").out
    assert out.startswith("NO")
    command = shlex.split(out.splitlines()[-1].removeprefix("next").strip())
    then = call(*command[1:], "--json")
    assert then.code == 0, then.err
    before = call("plan", "gpt2-xl", "--device", "rtx4090", "--json").json
    assert then.json["ledger"]["total"]["best"] < before["ledger"]["total"]["best"]


@pytest.mark.parametrize("style", ["nanogpt", "huggingface"])
def test_styles(style: str) -> None:
    options = ["--device", "a100-80gb", "--json"]
    ours = call("plan", "gpt2", *options).json
    theirs = call("plan", "gpt2", *options, "--style", style).json
    assert theirs["step"]["keeps_logits"] is True
    assert theirs["ledger"]["total"]["best"] > ours["ledger"]["total"]["best"]
    assert theirs["step"]["micro_batch_size"] == ours["step"]["micro_batch_size"]


def test_compile() -> None:
    options = ["--device", "a100-80gb", "--compile", "--json"]
    assert call("plan", "gpt2", *options, "--style", "nanogpt").json["step"]["compiled"] is True
    assert "gptfit's own step is not compiled" in call("plan", "gpt2", *options).err


def test_a_card_without_bfloat16_plans_float32() -> None:
    assert call("plan", "tiny", "--device", "t4", "--json").json["step"]["dtype"] == "float32"
    out = call("plan", "tiny", "--device", "t4").out
    assert "float32" in out
    assert "no bfloat16 here" in out


def test_plan_for_this_machine_s_processor() -> None:
    values = call("plan", "tiny-char", "--device", "cpu", "--json").json
    assert values["step"]["device_kind"] == "cpu"
    assert values["verdict"] == "FITS"


@pytest.mark.parametrize("name", ["memory.svg", "memory.png"])
def test_picture(tmp_path: Path, name: str) -> None:
    result = call("plan", "tiny", "--device", "t4", "--picture", tmp_path / name)
    assert result.code == 0, result.err
    assert (tmp_path / name).stat().st_size > 1000
    assert f"drew {tmp_path / name}" in result.err


def test_verify_traces_a_step() -> None:
    options = ("plan", "tiny-char", "--device", "t4", "--verify")
    phases = call(*options, "--json").json["verification"]
    assert set(phases) >= {"forward", "loss backward", "block backward", "optimizer step"}
    assert all(abs(phase["error"]) < 0.01 for phase in phases.values())
    last = call(*options).out.splitlines()[-1]
    assert last.startswith("evaluation")
    assert last.rstrip().endswith("%")


BAD = [
    (["--device", "rtx4009"], ["rtx4009", "did you mean 'RTX 4090'"]),
    (["--device", "a100"], ["'A100 SXM4 80GB'"]),
    (["--price", "2.50"], ["2.50", "no currency", '--price "2.50 USD"']),
    (["--price", "much"], ["much", "no price"]),
    (["--price", "-2 USD"], ["-2 USD", "no price"]),
    (["--tokens", "lots"], ["lots", "300M"]),
    (["--tokens", "0"], ["tokens='0'"]),
    (["--style", "nanogtp"], ["did you mean 'nanogpt'"]),
    (["--batch-size", "0"], ["batch-size"]),
    (["--batch-size", "99999999"], ["99999999", "at most 1048576"]),
    (["n_layer=1000000000"], ["n_layer"]),
    (["n_head=7"], ["n_head=7 does not divide"]),
    (["--picture", "memory.pdf"], ["memory.pdf", ".svg or .png"]),
    (["--picture", "no/such/folder/memory.png"], ["no/such/folder"]),
    (["dtype=bfloat16", "--device", "t4"], ["dtype=bfloat16 is not supported by T4"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: shlex.join(value)[:40])
def test_bad_input(arguments: list[str], words: list[str]) -> None:
    on = [] if "--device" in arguments else ["--device", "rtx4090"]
    result = call("plan", "gpt2", *arguments, *on)
    assert result.code == 2
    assert result.out == ""
    for word in words:
        assert word in result.err


def test_nothing_to_plan() -> None:
    assert call("plan").code == 2


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("2.50 USD", Price(2.5, "USD")),
        ("USD 2.50", Price(2.5, "USD")),
        ("€0.40/h", Price(0.4, "€")),
        ("3EUR/hour", Price(3.0, "EUR")),
        (" 1.2 $ ", Price(1.2, "$")),
        ("0 USD", Price(0.0, "USD")),
    ],
)
def test_price(text: str, price: Price) -> None:
    assert parse_price(text) == price


@pytest.mark.parametrize("text", ["", "USD", "1.2.3 USD", "2 USD 3", "nan USD", "1e999 USD"])
def test_no_price(text: str) -> None:
    with pytest.raises(ConfigError, match="price"):
        parse_price(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("300M", 3e8), ("10b", 1e10), ("2.5e9", 2.5e9), ("1,000,000", 1e6), ("7", 7)],
)
def test_tokens(text: str, tokens: float) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "-5", "0", "many", "1e99", "5 M tokens", "inf"])
def test_no_tokens(text: str) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        parse_tokens(text)


PROGRAM = """
import json, sys
from gptfit.cli import main
sys.argv = ["gptfit", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in ("torch", "numpy", "matplotlib") if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "verb", [["devices"], ["plan", "gpt2", "--device", "rtx4090"]], ids=" ".join
)
def test_planning_loads_nothing_heavy(verb: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, *verb]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_show_tells_memory_and_work() -> None:
    out = call("show", "gpt2").out
    assert "training holds 16 bytes per parameter" in out
    assert "1.85 GiB" in out
    assert "forward 285 MFLOPs, forward and backward 854 MFLOPs per token" in out


def test_show_json_has_memory_and_work() -> None:
    values = call("show", "gpt2", "--json").json
    memory = values["training_memory"]
    assert memory["total_bytes"] == 16 * 124_439_808
    assert memory["optimizer_bytes"] == 8 * 124_439_808
    flops = values["flops_per_token"]
    assert flops["convention"] == "model"
    forward = sum(flops["forward"].values())
    assert sum(flops["backward"].values()) == 2 * forward
    assert forward == 2 * (12 * 12 * 768**2 + 50257 * 768) + 4 * 12 * 1024 * 768


def test_less_memory_than_the_device_has() -> None:
    options = ["plan", "gpt2", "--device", "rtx4090"]
    whole, part = call(*options, "--json").json, call(*options, "--memory", "12GB", "--json").json
    assert (whole["verdict"], part["verdict"]) == ("FITS", "NO")
    assert part["usable_bytes"] == 12_000_000_000
    assert call(*options, "--memory", "1TB", "--json").json["usable_bytes"] == whole["usable_bytes"]
    for wrong in ("12", "-1GB", "12 potatoes", "0GB"):
        result = call(*options, "--memory", wrong)
        assert result.code == 2
        assert "such as 8GB or 7.5GiB" in result.err
