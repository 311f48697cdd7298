"""A device is known by its whole name or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptfit.errors import ConfigError
from gptfit.plan import host
from gptfit.plan.hardware import (
    GIB,
    bf16_peak_flops,
    devices,
    find_device,
    match_device,
    this_cpu,
)

TORCH_NAMES = [
    ("NVIDIA A100-SXM4-80GB", 312, 80),
    ("NVIDIA A100 80GB PCIe", 312, 80),
    ("NVIDIA A100-SXM4-40GB", 312, 40),
    ("NVIDIA H100 80GB HBM3", 989, 80),
    ("NVIDIA H100 PCIe", 756, 80),
    ("NVIDIA H200", 989, 141),
    ("NVIDIA GeForce RTX 4090", 165.2, 24),
    ("NVIDIA RTX A6000", 154.8, 48),
    ("NVIDIA L40S", 362, 48),
    ("NVIDIA L4", 121, 24),
    ("NVIDIA A10G", 70, 24),
]


@pytest.mark.parametrize(("name", "tflops", "gib"), TORCH_NAMES)
def test_known(name: str, tflops: float, gib: int) -> None:
    assert bf16_peak_flops(name) == tflops * 1e12
    device = match_device(name)
    assert device is not None
    assert device.memory_bytes == gib * GIB
    assert find_device(name) == device


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce GTX 1080",
        "Apple M2",
        "",
    ],
)
def test_unknown(name: str) -> None:
    assert match_device(name) is None
    assert bf16_peak_flops(name) is None


def test_cards_that_share_a_name_differ_in_memory() -> None:
    name = "NVIDIA GeForce RTX 3080"
    assert match_device(name, int(9.77 * GIB)) == find_device("3080")
    assert match_device(name, 12 * GIB) is None


@pytest.mark.parametrize("device", devices(), ids=lambda device: device.name)
def test_every_row_is_sound(device) -> None:
    """The peaks stand in the ratios of the hardware, and no unit has slipped."""
    peaks = device.peak_flops
    assert 0.6 * device.memory_bytes < device.usable_bytes < device.memory_bytes
    assert 50e9 < device.bandwidth < 10e12
    assert device.watts is None or 50 < device.watts <= 1000
    assert 1e12 < peaks["float32"] <= peaks["float16"] < 3e15
    assert device.bfloat16 is None or device.bfloat16 == ("bfloat16" in peaks)
    if "bfloat16" in peaks:
        assert peaks["bfloat16"] == peaks["float16"]
    if "tfloat32" in peaks:
        assert peaks["bfloat16"] / peaks["tfloat32"] == pytest.approx(2, rel=0.05)
    if "float8" in peaks:
        assert peaks["float8"] / peaks["bfloat16"] == pytest.approx(2, rel=0.03)
    geforce = device.name.startswith("RTX") and "A6000" not in device.name
    if geforce:
        assert peaks["bfloat16"] / peaks["float32"] == pytest.approx(2, rel=0.01)
    assert device.source


def test_old_cards_have_no_bfloat16() -> None:
    for name in ("T4", "v100-16gb", "v100-32gb", "v100-pcie"):
        device = find_device(name)
        assert device.bfloat16 is False
        assert "bfloat16" not in device.peak_flops


def test_no_name_means_two_devices() -> None:
    names = [name for device in devices() for name in device.torch_names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("RTX-4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4070ti", "RTX 4070 Ti"),
        ("a100-80gb", "A100 SXM4 80GB"),
        ("A100 40GB", "A100 SXM4 40GB"),
        ("h100", "H100 SXM"),
        ("m2", "Apple M2"),
        ("Apple M2 Ultra", "Apple M2 Ultra"),
        ("m2-ultra-128gb", "Apple M2 Ultra 128GB"),
        ("t4", "T4"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find_device(spelling).name == name


def test_apple_memory_is_what_was_bought() -> None:
    assert find_device("m2").memory_bytes == 8 * GIB
    assert find_device("m2-24gb").usable_bytes == 16 * GIB
    assert find_device("m2-ultra").usable_bytes == 48 * GIB


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("a100", "did you mean 'A100 PCIe 40GB' or 'A100 SXM4 40GB'"),
        ("rtx4009", "did you mean 'RTX 4090'"),
        ("rtx 4090 laptop", "did you mean 'RTX 4090'"),
        ("abacus", "see: gptfit devices"),
        ("", "see: gptfit devices"),
    ],
)
def test_unknown_names_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_device(word)
    assert hint in str(error.value)
    assert repr(word) in str(error.value)


def test_cuda_is_this_machine_s_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "gpu_names", lambda: ["NVIDIA H200", "NVIDIA H200"])
    assert find_device("cuda").name == "H200 SXM"
    monkeypatch.setattr(host, "gpu_names", lambda: ["NVIDIA TITAN RTX"])
    with pytest.raises(ConfigError, match="this machine's card is NVIDIA TITAN RTX"):
        find_device("cuda")
    monkeypatch.setattr(host, "gpu_names", list)
    with pytest.raises(ConfigError, match="no NVIDIA card"):
        find_device("cuda")


def test_this_cpu() -> None:
    cpu = find_device("cpu")
    assert cpu == this_cpu()
    assert cpu.kind == "cpu"
    assert cpu.cores == host.cores()
    assert 0 < cpu.usable_bytes <= cpu.memory_bytes
    assert cpu.bandwidth is None
    assert cpu.peak_flops == {}


GIB_2, GIB_3 = str(2 * GIB), str(3 * GIB)
UNLIMITED = "9223372036854771712"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": GIB_3}, 3 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": GIB_2, "a/memory.max": GIB_3}, 2 * GIB),
        ("0::/\n", {"memory.max": GIB_2}, 2 * GIB),
        ("0::/a\n", {"a/memory.max": "max"}, None),
        (
            "5:cpu:/x\n4:memory:/job\n0::/\n",
            {"memory/job/memory.limit_in_bytes": GIB_2, "memory/memory.limit_in_bytes": UNLIMITED},
            2 * GIB,
        ),
        ("", {}, None),
    ],
)
def test_memory_limit(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int | None
) -> None:
    """Control groups of version 2 and 1, whichever is nearest or lowest."""
    files = {"proc/self/cgroup": groups}
    files |= {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in limits.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.memory_limit_bytes(tmp_path) == expected


def test_a_container_limits_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(host, "memory_limit_bytes", lambda: 4 * GIB)
    assert this_cpu().usable_bytes == 4 * GIB
    monkeypatch.setattr(host, "memory_limit_bytes", lambda: None)
    assert this_cpu().usable_bytes == 62 * GIB


def test_gpus_as_the_driver_lists_them(tmp_path: Path) -> None:
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA A10G\nIRQ:   \t\t 42\n")
    assert host.gpu_names(tmp_path) == ["NVIDIA A10G"]
    assert host.gpu_names(tmp_path / "elsewhere") == []
