"""Whether a run that was interrupted equals one that was not, bit for bit.

Each chain is a tiny run with dropout and accumulation across an epoch, and is interrupted one to four
times at random places: asked to leave, ended by an exception, or killed with SIGKILL. At its
end weights, the optimizer's tensors, the best checkpoint and the metrics are compared with those of a run
that nothing interrupted. On the CPU in float32, with checkpoints written in the background.

    python benchmarks/interruption_chains.py [--chains 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    """Print a line for each chain, and how many were equal."""
    from interruptions import CHAINED, KINDS, chain, differences
    from tiny_run import finish, make_trainer

    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    equal = 0
    with tempfile.TemporaryDirectory(prefix="gptfit-chains-") as name:
        folder = Path(name)
        finish(make_trainer(folder / "straight", *CHAINED))
        for number in range(wish.chains):
            run = folder / f"chain-{number}"
            planned = chain(run, CHAINED, random.Random(f"{wish.seed}/{number}"), KINDS)
            found = differences(run, folder / "straight")
            equal += not found
            tale = ", ".join(f"{at.kind} at {at.asked}" for at in planned)
            print(f"{number:>4}  {tale}: {found or 'equal'}", flush=True)
    print(f"{equal} of {wish.chains} chains equal the straight run bit for bit")
    sys.exit(equal < wish.chains)


if __name__ == "__main__":
    main()
