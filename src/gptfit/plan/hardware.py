"""What devices can do. A device that is not listed is unknown, never guessed."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from gptfit.errors import ConfigError, Problem
from gptfit.plan import host

CUDA, ROCM, MPS, CPU = "cuda", "rocm", "mps", "cpu"
DATASHEET, MEASURED, DERIVED, UNCERTAIN = "datasheet", "measured", "derived", "uncertain"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device: bytes, bytes per second, FLOP/s and watts; None is unknown.

    ``memory_bytes`` is nominal, ``usable_bytes`` what a process with its driver's context can have.
    ``peak_flops`` are dense peaks of matrix products with float32 accumulation by dtype (float32,
    tfloat32, bfloat16, float16, float8); an absent one is not supported or not known. ``bfloat16``
    says whether it is native. ``link`` is the bandwidth to a peer in one direction. ``confidence``
    is that of the peaks and the bandwidth, and ``uncertain`` names single fields without a maker's
    document. ``torch_names`` are what ``torch.cuda.get_device_name`` answers.
    """

    name: str
    kind: str
    architecture: str = ""
    memory_bytes: int
    usable_bytes: int
    bandwidth: float | None = None
    peak_flops: Mapping[str, float] = field(default_factory=dict, hash=False)
    bfloat16: bool | None = None
    link: float | None = None
    watts: float | None = None
    cores: int | None = None
    aliases: tuple[str, ...] = ()
    torch_names: tuple[str, ...] = ()
    source: str
    confidence: str
    usable_confidence: str = DERIVED
    uncertain: tuple[str, ...] = ()
    memory_options: tuple[int, ...] = ()

    @property
    def torch_kind(self) -> str:
        """The kind as torch calls it: AMD's are cuda too."""
        return CUDA if self.kind == ROCM else self.kind


@functools.cache
def devices() -> tuple[DeviceSpec, ...]:
    """The table in ``devices.toml``.

    >>> next(device.bandwidth for device in devices() if device.name == "RTX 4090")
    1008000000000.0
    """
    text = resources.files("gptfit.plan").joinpath("devices.toml").read_text(encoding="utf-8")
    return tuple(_device(name, row) for name, row in tomllib.loads(text).items())


def _device(name: str, row: dict[str, Any]) -> DeviceSpec:
    """A row of the table in SI units. Of several sizes of memory the smallest stands for the device."""
    memory = row["memory_gib"]
    options = memory if isinstance(memory, list) else [memory]
    nominal = options[0] * GIB
    seen = row.get("usable_gib")
    return DeviceSpec(
        name=name,
        kind=row["kind"],
        architecture=row.get("architecture", ""),
        memory_bytes=nominal,
        usable_bytes=int(seen * GIB) if seen else usable(row["kind"], nominal),
        bandwidth=row["bandwidth_gbps"] * 1e9,
        peak_flops={dtype: round(peak * 1e12) * 1.0 for dtype, peak in row["tflops"].items()},
        bfloat16=row.get("bfloat16"),
        link=row["link_gbps"] * 1e9 if "link_gbps" in row else None,
        watts=row.get("watts"),
        aliases=tuple(row.get("aliases", ())),
        torch_names=tuple(row.get("torch", ())),
        source=row["source"],
        confidence=row["confidence"],
        usable_confidence=MEASURED if seen else DERIVED,
        uncertain=tuple(row.get("uncertain", ())),
        memory_options=tuple(size * GIB for size in options),
    )


def usable(kind: str, nominal_bytes: int) -> int:
    """What is left of the nominal memory where nobody has looked: the least that is left elsewhere.

    NVIDIA's driver keeps 1 to 4 % of a card for itself. macOS lends its GPU two thirds of the memory,
    three quarters from 36 GB on (Metal's recommendedMaxWorkingSetSize in logs of llama.cpp: 10.7 of
    16 and 48 of 64 GiB; the newest systems lend 74 % of 16, too).
    """
    if kind == MPS:
        share = 3 / 4 if nominal_bytes >= 36 * GIB else 2 / 3
    else:
        share = 0.96
    return int(nominal_bytes * share)


def this_cpu() -> DeviceSpec:
    """This machine's processor; its bandwidth and peaks are unknown until they are measured."""
    physical, limit = host.memory_bytes(), host.memory_limit_bytes()
    return DeviceSpec(
        name=f"{host.cpu_name()}, {host.cores()} cores",
        kind=CPU,
        architecture=" ".join(host.bf16_instructions()),
        memory_bytes=physical,
        # A tenth, at most 2 GiB, is the system's; a control group's limit counts this process alone.
        usable_bytes=min(
            physical - min(physical // 10, 2 * GIB), physical if limit is None else limit
        ),
        bfloat16=bool(host.bf16_instructions()),
        cores=host.cores(),
        aliases=(CPU,),
        source="this machine",
        confidence=MEASURED,
        usable_confidence=DERIVED if limit is None or limit >= physical else MEASURED,
    )


def this_gpu() -> DeviceSpec:
    """This machine's first NVIDIA card; ConfigError where there is none or the table lacks it."""
    names = host.gpu_names()
    if names and (device := match_device(names[0])):
        return device
    card = f"this machine's card is {names[0]}" if names else "this machine has no NVIDIA card"
    fix = "name a device of the table: gptfit devices"
    raise ConfigError(Problem("device", f"device='cuda' is not in the table: {card}", fix))


def this_device() -> DeviceSpec:
    """What a training takes here when nothing else is said: the graphics card, else the processor."""
    return this_gpu() if host.gpu_names() else this_cpu()


def find_device(name: str) -> DeviceSpec:
    """The device of that name or alias, however it is spelt; ``cpu`` and ``cuda`` are this machine's.

    A size of memory may follow where there are several. Raises ConfigError for any other name.

    >>> find_device("rtx-4090").name, find_device("NVIDIA H200").name, find_device("m2-16gb").name
    ('RTX 4090', 'H200 SXM', 'Apple M2 16GB')
    """
    if _key(name) == CPU:
        return this_cpu()
    if _key(name) == CUDA:
        return this_gpu()
    if found := _by_key().get(_key(name)):
        return found
    raise ConfigError(Problem("device", f"device={name!r} is not in the table", _way_out(name)))


def match_device(torch_name: str, memory_bytes: int | None = None) -> DeviceSpec | None:
    """The device that torch calls so, or None: a laptop's or a sliced card is another device.

    ``memory_bytes`` tells cards apart that share a name, such as the RTX 3080 of 10 and of 12 GB.

    >>> match_device("NVIDIA H100 80GB HBM3").name
    'H100 SXM'
    >>> match_device("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    True
    """
    words = torch_name.removeprefix("NVIDIA ")
    for device in devices():
        if words in (known.removeprefix("NVIDIA ") for known in device.torch_names):
            same = memory_bytes is None or abs(memory_bytes / device.memory_bytes - 1) < 0.1
            return device if same else None
    return None


def bf16_peak_flops(device_name: str) -> float | None:
    """The dense bfloat16 peak in FLOP/s of the device that torch calls so, or None.

    >>> bf16_peak_flops("NVIDIA H100 80GB HBM3"), bf16_peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU")
    (989000000000000.0, None)
    """
    device = match_device(device_name)
    return device.peak_flops.get("bfloat16") if device else None


def _key(name: str) -> str:
    """``NVIDIA GeForce RTX 4090``, ``rtx-4090`` and ``RTX4090`` are one."""
    words = re.sub(r"(?i)\b(nvidia|geforce|tesla|amd|instinct|apple)\b", "", name)
    return re.sub(r"[^a-z0-9]", "", words.lower())


@functools.cache
def _by_key() -> dict[str, DeviceSpec]:
    return {
        _key(name): choice
        for device in devices()
        for choice in (device, *_sizes(device))
        for name in (choice.name, *choice.aliases, *choice.torch_names)
    }


def _sizes(device: DeviceSpec) -> Iterator[DeviceSpec]:
    """The device with each of the memories it is sold with, if there are several."""
    for size in device.memory_options if len(device.memory_options) > 1 else ():
        suffix = f"{size // GIB}GB"
        yield replace(
            device,
            name=f"{device.name} {suffix}",
            memory_bytes=size,
            usable_bytes=usable(device.kind, size),
            aliases=tuple(f"{alias}-{suffix}" for alias in device.aliases),
            memory_options=(),
        )


def _way_out(name: str) -> str:
    """The devices whose name begins alike or is spelt nearly so, and where all of them are listed."""
    from difflib import get_close_matches

    known = _by_key()
    near = [key for key in known if _key(name) and key.startswith(_key(name))]
    near = near or get_close_matches(_key(name), known, n=3, cutoff=0.6)
    names = _quoted(dict.fromkeys(known[key].name for key in near))
    return f"did you mean {names}? See: gptfit devices" if near else "see: gptfit devices"


def _quoted(names: Iterable[str]) -> str:
    return " or ".join(f"{name!r}" for name in names)
