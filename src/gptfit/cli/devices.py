"""The verb devices: what gptfit knows of graphics cards, and of this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from gptfit.cli.console import print_json, stderr, stdout, table
from gptfit.errors import ConfigError
from gptfit.plan import hardware
from gptfit.plan.hardware import DeviceSpec
from gptfit.plan.quantities import BYTES, text_of

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("devices")(list_devices)


def list_devices(as_json: Json = False) -> None:
    """List the devices that plan knows, and this machine's."""
    here = this_machine()
    if as_json:
        values = {"this_machine": here, "devices": hardware.devices()}
        print_json({name: [asdict(device) for device in rows] for name, rows in values.items()})
        return
    columns = ("usable GiB", "GB/s", *PEAKS.values(), "link GB/s", "watts")
    result = table("device", *columns, "confidence", right=columns)
    for device in hardware.devices():
        result.add_row(*_device_row(device))
    console = stdout()
    console.print(result)
    console.print(LEGEND, soft_wrap=True)
    for device in here:
        console.print(f"this machine: {_in_words(device)}", soft_wrap=True)
    stderr().print("\nPlan with one: gptfit plan gpt2 --device rtx4090")


PEAKS = {
    "float32": "fp32",
    "tfloat32": "tf32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8": "fp8",
}


LEGEND = """
fp32 to fp8: TFLOP/s of dense matrix products with float32 accumulation. ? nothing that a maker
published or anybody measured backs it. - not supported or not known. Sources: gptfit devices --json
"""


def this_machine() -> list[DeviceSpec]:
    """The devices of this machine that can be known without loading anything."""
    try:
        return [hardware.this_cpu(), hardware.this_gpu()]
    except ConfigError:
        return [hardware.this_cpu()]


def is_here(device: DeviceSpec) -> bool:
    """Whether it is this machine's, of whose memory there may be less to use."""
    return any(device.name == here.name for here in this_machine())


def _device_row(device: DeviceSpec) -> list[str]:
    usable = f"{device.usable_bytes / hardware.GIB:.1f}"
    return [
        device.name,
        usable if device.usable_confidence == hardware.MEASURED else f"{usable}?",
        _scaled(device.bandwidth, 1e9, ""),
        *(_peak(device, dtype) for dtype in PEAKS),
        _scaled(device.link, 1e9, "?" if "link" in device.uncertain else ""),
        _scaled(device.watts, 1, ""),
        device.confidence,
    ]


def _peak(device: DeviceSpec, dtype: str) -> str:
    if dtype == "bfloat16" and device.bfloat16 is False:
        return "no"
    doubt = "?" if "peak_flops" in device.uncertain else ""
    return _scaled(device.peak_flops.get(dtype), 1e12, doubt)


def _scaled(value: float | None, unit: float, doubt: str) -> str:
    return "-" if value is None else f"{value / unit:,.4g}{doubt}"


def _in_words(device: DeviceSpec) -> str:
    memory = (
        f"{text_of(device.usable_bytes, BYTES)} of {text_of(device.memory_bytes, BYTES)} usable"
    )
    if device.kind != hardware.CPU:
        return f"{device.name}, {memory}"
    bf16 = device.architecture or "no bfloat16 instructions"
    return f"{device.name}, {bf16}, {memory}; its speed is known once it is measured"
