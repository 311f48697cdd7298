"""gptfit eval, as a user calls it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import SMALL, TEXT, call
from gptfit.cli import evaluating
from gptfit.data import TokenDataset, Tokenizer
from gptfit.formats.hf import load_model
from gptfit.formats.locate import find_model
from gptfit.generate import evaluate, score

CONTEXT = 16
HELD_OUT = "All unhappy families are alike; each family is happy in its own way.\n" * 3


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.txt"
    path.write_text(HELD_OUT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bpe_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a byte-level BPE model."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "families.txt").write_text(TEXT, encoding="utf-8")
    result = call(
        "train", "tiny-char", *SMALL, "n_positions=12", "max_steps=5", "sample_interval=0",
        "tokenizer=bpe", "bpe_vocab_size=300", "--data", folder / "families.txt",
        "--out", folder / "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A checkpoint folder to be damaged, without the hashes that would find it out."""
    folder = tmp_path / "model [b]"
    shutil.copytree(find_model(run), folder)
    for manifest in folder.glob("manifest*"):
        manifest.unlink()
    return folder


def nats(run: Path, text: str, stride: int) -> torch.Tensor:
    """The losses of the tokens of a text, by the Python API."""
    folder = find_model(run)
    return -score(load_model(folder), Tokenizer.load(folder).encode(text), stride).double()


def test_json(run: Path, held_out: Path) -> None:
    result = call("eval", run, "--data", held_out, "--stride", "5", "--json", "--device", "cpu")
    assert result.code == 0, result.err
    losses = nats(run, HELD_OUT, 5)
    loss = losses.mean().item()
    assert result.json["data"] == str(held_out)
    assert result.json["best"] == str(run)
    (found,) = result.json["models"]
    assert found.pop("loss") == pytest.approx(loss, abs=1e-6)
    assert found.pop("perplexity") == pytest.approx(math.exp(loss), rel=1e-5)
    bits = losses.sum().item() / math.log(2) / (len(HELD_OUT) - 1)
    assert found.pop("bits_per_byte") == pytest.approx(bits, rel=1e-6)
    assert found == {
        "model": str(run),
        "tokens": len(HELD_OUT) - 1,
        "of_tokens": len(HELD_OUT) - 1,
        "bytes": len(HELD_OUT) - 1,
        "context": CONTEXT,
        "stride": 5,
        "dtype": "float32",
        "weights": "float32",
    }


def test_compares_models_by_bits_per_byte(run: Path, bpe_run: Path, held_out: Path) -> None:
    values = call("eval", run, bpe_run, "--data", held_out, "--json").json
    bits = {one["model"]: one["bits_per_byte"] for one in values["models"]}
    best, other = sorted(bits, key=bits.__getitem__)
    assert values["best"] == best
    assert list(bits) == [best, other]
    assert [one["stride"] for one in values["models"]] == [
        one["context"] // 2 for one in values["models"]
    ]
    result = call("eval", other, best, "--data", held_out)
    header, first, second, windows, legend = result.out.splitlines()
    assert header.split() == ["model", "bits/byte", "nats/token", "perplexity", "tokens"]
    assert first.startswith(best)
    assert first.endswith("best")
    assert second.startswith(other)
    assert "best" not in second.split()
    assert f"{bits[best]:.4f}" in first
    assert sorted(re.findall(r"\d+, stride \d+", windows)) == ["12, stride 6", "16, stride 8"]
    assert legend.startswith("sorted by bits per byte")
    assert result.err == ""


def test_bytes_are_those_of_the_scored_tokens(bpe_run: Path, tmp_path: Path) -> None:
    text = "愛 und Füße 🦊 are happy families"
    path = tmp_path / "short.txt"
    path.write_text("\ufeff" + text, encoding="utf-8")
    tokenizer = Tokenizer.load(find_model(bpe_run))
    names = json.loads(tokenizer.document)["model"]["vocab"]
    by_id = {index: name for name, index in names.items()}
    sizes = [len(by_id[int(index)]) for index in tokenizer.encode(text)]
    assert sum(sizes) == len(text.encode("utf-8"))
    assert sizes[0] == 1  # a third of the first character
    losses = nats(bpe_run, text, 6)
    for limit in (1, 2, 5, len(sizes) - 1):
        (found,) = call(
            "eval", bpe_run, "--data", path, "--max-tokens", limit, "--json"
        ).json["models"]  # fmt: skip
        assert found["tokens"] == limit
        assert found["bytes"] == sum(sizes[1 : 1 + limit])
        expected = losses[:limit].sum().item() / math.log(2) / found["bytes"]
        assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_truncate_scores_one_window_and_says_so(run: Path, held_out: Path) -> None:
    result = call("eval", run, "--data", held_out, "--truncate", "--json")
    (found,) = result.json["models"]
    assert found["tokens"] == CONTEXT
    assert found["loss"] == pytest.approx(nats(run, HELD_OUT, 1)[:CONTEXT].mean().item(), abs=1e-5)
    all_targets = len(HELD_OUT) - 1
    left_out = f"the last {all_targets - CONTEXT:,} of {all_targets:,} tokens were left out"
    assert result.err == f"note: {run}: {left_out}\n"


def test_truncated_models_of_different_contexts(run: Path, bpe_run: Path, held_out: Path) -> None:
    result = call("eval", run, bpe_run, "--data", held_out, "--truncate")
    assert "scored on different lengths of the text" in result.err


def test_standard_input_for_several_models(run: Path, bpe_run: Path, held_out: Path) -> None:
    piped = call("eval", run, bpe_run, "--data", "-", "--json", stdin=HELD_OUT)
    named = call("eval", run, bpe_run, "--data", held_out, "--json")
    assert piped.json["models"] == named.json["models"]


def test_prepared_folder(run: Path, bpe_run: Path) -> None:
    for one in (run, bpe_run):
        dataset = TokenDataset.open(one / "data")
        (found,) = call("eval", one, "--data", one / "data", "--json").json["models"]
        assert found["tokens"] == len(dataset.val) - 1
        first = len(dataset.tokenizer.decode(dataset.val[:1]).encode("utf-8"))
        assert found["bytes"] == dataset.val_text_bytes - first
        context = found["context"]
        (found,) = call(
            "eval", one, "--data", one / "data", "--stride", context, "--json"
        ).json["models"]  # fmt: skip
        expected = evaluate(load_model(find_model(one)), dataset.val).loss
        assert found["loss"] == pytest.approx(expected, abs=1e-5)
    result = call("eval", run, "--data", bpe_run / "data")
    assert result.code == 2
    assert "was prepared with another tokenizer than the model's" in result.err


def test_documents_are_parted_by_the_end_of_text(bpe_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "happy"}\n{"text": "unhappy"}\n', encoding="utf-8")
    tokenizer = Tokenizer.load(find_model(bpe_run))
    first, second = (tokenizer.encode(text) for text in ("happy", "unhappy"))
    (found,) = call("eval", bpe_run, "--data", path, "--json").json["models"]
    assert found["tokens"] == len(first) + len(second)
    ids = np.concatenate([first, [tokenizer.eos_token_id], second])
    expected = -score(load_model(find_model(bpe_run)), ids).mean().item()
    assert found["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_tokenizer_that_changes_the_text_has_no_bits_per_byte(
    bpe_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lowercase"
    shutil.copytree(find_model(bpe_run), folder)
    for manifest in folder.glob("manifest*"):
        manifest.unlink()
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"] = {"type": "NFD"}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    path = tmp_path / "text.txt"
    path.write_text("Füße are happy", encoding="utf-8")
    result = call("eval", folder, bpe_run, "--data", path, "--json")
    known, unknown = result.json["models"]
    assert result.json["best"] == known["model"] == str(bpe_run)
    assert unknown["bits_per_byte"] is None
    assert f"note: {folder}: bits per byte are not known" in result.err
    rows = call("eval", folder, "--data", path).out.split("windows of")[0]
    assert rows.split()[-4] == "-"


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ([], b"", "is empty"),
        ([], b"a", "1 tokens hold nothing to predict"),
        ([], b"caf\xe9", "is not UTF-8 at byte 3"),
        ([], b"a\0b", "is binary, not text"),
        ([], "All \U0001f98a".encode(), "characters that the vocabulary lacks: '\U0001f98a'"),
        (["--stride", "17"], b"All happy", r"--stride 17 .* context of .* is 16; choose 1 to 16"),
        (["--stride", "0"], b"All happy", "--stride"),
        (["--max-tokens", "0"], b"All happy", "--max-tokens"),
        (["--truncate", "--max-tokens", "3"], b"All happy", "--truncate scores one window only"),
        (["--truncate", "--stride", "3"], b"All happy", "--truncate scores one window only"),
        (["--dtype", "float99"], b"All happy", "dtype='float99'"),
        (["--device", "toaster"], b"All happy", "device='toaster' is not known"),
    ],
)  # fmt: skip
def test_bad_input(
    words: list[str], content: bytes, message: str, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    result = call("eval", run, "--data", path, *words)
    assert result.code == 2
    assert re.search(message, " ".join(result.err.split()))
    assert result.out == ""


def test_data_that_is_not_there(run: Path) -> None:
    assert "no such file or folder" in call("eval", run, "--data", "nowhere.txt").err
    assert "Missing option '--data'" in call("eval", run).err
    assert "Missing argument 'MODEL'" in call("eval", "--data", "nowhere.txt").err
    assert "standard input is empty" in call("eval", run, "--data", "-", stdin="").err


def test_model_without_tokenizer(checkpoint: Path, held_out: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    result = call("eval", checkpoint, "--data", held_out)
    assert result.code == 2
    assert f"{checkpoint} has no tokenizer that can be used, so it cannot read the" in result.err


def test_ids_beyond_the_models_vocabulary(checkpoint: Path, held_out: Path) -> None:
    Tokenizer.char(TEXT + "".join(map(chr, range(1, 60)))).save(checkpoint)
    result = call("eval", checkpoint, "--data", held_out)
    assert result.code == 2
    assert re.search(r"model \[b\]: token id \d+ is outside the model's vocabulary", result.err)


def test_what_was_scored_is_shown_when_a_later_model_fails(
    run: Path, checkpoint: Path, held_out: Path
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = math.nan
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    result = call("eval", run, checkpoint, "--data", held_out, "--json")
    assert result.code == 2
    assert [one["model"] for one in result.json["models"]] == [str(run)]
    assert "model [b]: the model computes NaN or infinity" in result.err


def test_perplexity_beyond_all_numbers(checkpoint: Path, held_out: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    for name in weights:
        if "ln_f" in name:
            weights[name] *= 1e5
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    (found,) = call("eval", checkpoint, "--data", held_out, "--json").json["models"]
    assert found["loss"] > 1000
    assert found["perplexity"] is None
    assert "inf" in call("eval", checkpoint, "--data", held_out).out


def test_progress_where_there_is_no_terminal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert call("eval", run, "--data", path).err == ""
    monkeypatch.setattr(evaluating, "PLAIN_INTERVAL_SECONDS", 0.0)
    lines = call("eval", run, "--data", path).err.splitlines()
    assert lines
    pattern = rf"{re.escape(str(run))}: [\d,]+ of {len(TEXT) - 1:,} tokens scored, \d+:\d\d left"
    assert all(re.fullmatch(pattern, line) for line in lines)


@pytest.mark.skipif(torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="x86 only")
def test_smaller_weights_say_what_they_cost(run: Path, text: Path) -> None:
    result = call("eval", run, "--data", text, "--weights", "float32,float16,int8", "--json")
    assert result.code == 0, result.err
    loss = {row["weights"]: row["loss"] for row in result.json["models"]}
    assert loss["float16"] == pytest.approx(loss["float32"], rel=1e-3)
    assert loss["int8"] == pytest.approx(loss["float16"], rel=0.01)
    assert loss["int8"] != loss["float32"]
    assert "(int8): " in result.err
    assert call("eval", run, "--data", text, "--weights", "int3").code == 2
