"""What a run leaves behind, transformers loads as it is, and writes the same text with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import SMALL, call
from gptfit.config import GPT2Config
from gptfit.data import Tokenizer

TEXT = "“Wer reitet so spät?” — the café’s naïve host   asked; 12 tabs\tand  two spaces.\n\n" * 60


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("bias", ["false", "true"])
def test_same_text_greedily(tokenizer: str, bias: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    out = tmp_path / "run"
    trained = call(
        "train", "tiny-char", *SMALL, "n_positions=64", f"tokenizer={tokenizer}", f"bias={bias}",
        "bpe_vocab_size=300", "max_steps=60", "learning_rate=0.01", "eval_interval=60",
        "--data", text, "--out", out,
    )  # fmt: skip
    assert trained.code == 0, trained.err

    best = out / "checkpoints" / "best"
    model = AutoModelForCausalLM.from_pretrained(best)
    theirs = AutoTokenizer.from_pretrained(best)
    prompt = "“Wer  reitet\tso"
    ids = theirs(prompt, return_tensors="pt")
    assert ids["input_ids"][0].tolist() == Tokenizer.load(best).encode(prompt).tolist()
    stop = theirs.eos_token_id
    written = model.generate(**ids, max_new_tokens=40, do_sample=False, pad_token_id=stop or 0)
    ours = call("generate", out, "--prompt", prompt, "--temperature", 0, "-n", 40)
    assert theirs.decode(written[0]) == ours.out.removesuffix("\n")
    assert GPT2Config.from_file(best).bias == (bias == "true")
