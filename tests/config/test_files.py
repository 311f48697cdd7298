"""Configuration files: every malformed one is refused with the place and the way out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfit.config import GPT2Config
from gptfit.config.files import MAX_BYTES, read_config_file, write_toml
from gptfit.errors import ConfigError

FAULTS: list[tuple[str, bytes, str]] = [
    ("a.json", b'{"n_layer": 1, "n_layer": 2}', "the key 'n_layer' is given twice"),
    ("a.json", b'{"a": {"b": 1, "b": 1}}', "the key 'b' is given twice"),
    (
        "a.json",
        b'{"n_layer": 1,}',
        "line 1, column 15: a comma with nothing after it; remove the comma",
    ),
    ("a.json", b'{\n  "n_layer": [1,\n  ]\n}', "a comma with nothing after it"),
    ("a.json", b'{"n_layer": NaN}', "NaN is not a number in JSON"),
    ("a.json", b'{"n_layer": -Infinity}', "-Infinity is not a number in JSON"),
    ("a.json", b'{"n_layer": 1e400}', "1e400 is not a finite number"),
    ("a.json", b'{"n_layer": ' + b"9" * 5000 + b"}", "thousands of digits"),
    ("a.json", b"{'n_layer': 1}", "line 1, column 2: strings take double quotes"),
    ("a.json", b'{"n_layer": 1 // heads\n}', "JSON has no comments"),
    ("a.json", b'{"n_layer": 1', "not JSON at line 1, column 14"),
    ("a.json", b"", "not JSON at line 1, column 1"),
    ("a.json", b"[1, 2]", "holds [1, 2]; a configuration is an object"),
    ("a.json", b"null", "a configuration is an object"),
    ("a.json", b"\xef\xbb\xbf{}", "byte order mark; save it as UTF-8 without BOM"),
    ("a.json", '{"name": "é"}'.encode("utf-16"), "UTF-16"),
    ("a.json", '{"name": "é"}'.encode("utf-16-be"), "UTF-16"),
    ("a.json", '{"name": "é"}'.encode("latin-1"), "is not UTF-8 (byte 10)"),
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.json", b'{"a":' * 100_000, "nested too deeply"),
    ("a.json", b" " * 10_000_000, "is larger than 1,048,576 bytes"),
    ("a.toml", b"n_layer = 1\nn_layer = 2\n", "line 2"),
    ("a.toml", b"n_layer = nan", "nan is not a finite number"),
    ("a.toml", b"n_layer = 1e400", "1e400 is not a finite number"),
    ("a.toml", b"n_layer = " + b"9" * 5000, "thousands of digits"),
    ("a.toml", b"n_layer: 6", "not TOML"),
    ("a.toml", b"a = " + b"[" * 100_000, "nested too deeply"),
    ("a.yaml", b"n_layer: 6", "unknown file type '.yaml'; use .json or .toml"),
    ("config", b"{}", "unknown file type ''; use .json or .toml"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS, ids=[f[2][:40] for f in FAULTS])
def test_malformed_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json: no such file"):
        read_config_file(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"is a folder; name a \.json or \.toml file"):
        read_config_file(tmp_path)


def test_a_file_of_nothing_but_unknown_keys_gets_a_short_answer(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    path.write_text("{" + ",".join(f'"k{n}":1' for n in range(80_000)) + "}", encoding="utf-8")
    assert path.stat().st_size < MAX_BYTES
    with pytest.raises(ConfigError, match="79980 more unknown keys"):
        GPT2Config.from_file(path)


def test_both_formats_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.JSON").write_text('{"n_layer": 6, "name": "é"}', encoding="utf-8")
    (tmp_path / "a.toml").write_text('n_layer = 6\nname = "é"\n', encoding="utf-8")
    expected = {"n_layer": 6, "name": "é"}
    assert (
        read_config_file(tmp_path / "a.JSON")
        == read_config_file(str(tmp_path / "a.toml"))
        == expected
    )


characters = st.characters(exclude_categories=["Cs"])
scalars = (
    st.text(characters)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.dictionaries(st.text(characters, min_size=1), scalars | st.lists(st.text(characters)))


@given(st.dictionaries(st.text(characters, min_size=1), scalars | values))
def test_toml_round_trip(document: dict[str, Any]) -> None:
    assert tomllib.loads(write_toml(document)) == document


def test_toml_leaves_none_out_and_refuses_what_it_cannot_say() -> None:
    assert write_toml({"train": {"seed": None, "lr": 1e-5}}) == "[train]\nlr = 1e-05\n"
    with pytest.raises(ConfigError, match="inf is not a finite number"):
        write_toml({"lr": float("inf")})
    with pytest.raises(ConfigError, match="not valid Unicode"):
        write_toml({"name": "\udc80"})
