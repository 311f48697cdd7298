"""The rooms form one ordered list; a room imports only itself and rooms before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "gptfit"
ROOMS = [
    "errors",
    "config",
    "plan",
    "data",
    "model",
    "formats",
    "generate",
    "train",
    "bench",
    "serve",
    "cli",
]
LIGHT_ROOMS = {"errors", "config", "plan", "cli"}
HEAVY = {"torch", "numpy", "tokenizers", "tiktoken", "safetensors", "matplotlib", "transformers"}
HEAVY |= {"fastapi", "starlette", "uvicorn", "pydantic"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool) -> set[str]:
    """Imported modules; only those at module level unless ``everywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree) if everywhere else ast.iter_child_nodes(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_every_room_is_in_the_list() -> None:
    assert {room(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) in ("__init__", "__main__"):
        return
    allowed = set(ROOMS[: ROOMS.index(room(path)) + 1])
    ours = {name for name in imports(path, everywhere=True) if name.split(".")[0] == "gptfit"}
    used = {name.split(".")[1] for name in ours if "." in name}
    assert used <= allowed, f"{path} reaches up into {used - allowed}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_rooms_import_nothing_heavy(path: Path) -> None:
    if room(path) in LIGHT_ROOMS:
        heavy = {name.split(".")[0] for name in imports(path, everywhere=False)} & HEAVY
        assert not heavy
