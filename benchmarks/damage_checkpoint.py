"""Flip bits and cut files of a checkpoint at random places: each time it is refused, naming the file.

Every other place is drawn from all bytes of the checkpoint, the rest from a file that is drawn first, so
that the small ones have their turn.

    python benchmarks/damage_checkpoint.py --flips 1000 --truncations 200
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gptfit.config import GPT2Config
from gptfit.data import Tokenizer
from gptfit.errors import CheckpointError
from gptfit.model import GPT2
from gptfit.train.checkpoint import CheckpointStore, TrainingState
from gptfit.train.recovery import newest

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=3)


def make_checkpoint(run: Path) -> Path:
    """A small checkpoint with all of its files."""
    run.mkdir()
    store, model = CheckpointStore(run), GPT2(CONFIG)
    moments = dict(model.named_parameters())
    state = TrainingState(1, 0.0, None, None, "")
    store.save(model, Tokenizer.char("abc"), moments, state, is_best=True)
    [written] = store.finished()
    assert written.folder is not None
    return written.folder


def flipped(content: bytes, place: int, chance: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, place: int, chance: random.Random) -> bytes:
    """What lies before ``place``; nothing, at times."""
    return content[:place]


def fault(run: Path, path: Path, damaged: bytes) -> str | None:
    """What is wrong with how the damaged file was met: it was taken, or the error does not name it."""
    content = path.read_bytes()
    path.write_bytes(damaged)
    try:
        newest(run)
    except CheckpointError as error:
        return None if path.name in str(error) else f"{path.name} is not in: {error}"
    finally:
        path.write_bytes(content)
    return f"{path.name}: {len(damaged)} of {len(content)} bytes were taken"


def main() -> None:
    """Print the counts as JSON; end with 1 where damage was not met as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kinds: list[Callable[[bytes, int, random.Random], bytes]] = [flipped] * arguments.flips
    kinds += [cut] * arguments.truncations
    hit: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="gptfit-damage-") as folder:
        run = Path(folder) / "run"
        checkpoint = make_checkpoint(run)
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        sizes = [path.stat().st_size for path in files]
        for number, damage in enumerate(kinds):
            path = chance.choices(files, sizes if number % 2 else None)[0]
            content = path.read_bytes()
            found = fault(run, path, damage(content, chance.randrange(len(content)), chance))
            faults += [found] if found else []
            hit[path.relative_to(checkpoint).as_posix()] += 1
        newest(run)  # and whole again
    print(json.dumps({"damaged": dict(hit.most_common()), "not_refused": faults}, indent=2))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
