"""What a change of the recipe does to the loss: a preset with each of several overrides.

    python benchmarks/recipe_variants.py --data input.txt --preset shakespeare-char-cpu-fast --steps 400 \\
        "" "muon_momentum=0.95" "optimizer=adamw learning_rate=1e-3"

"" is the preset as it is. Each is trained by the ordinary trainer from the same seed, for as many steps
unless it names ``max_steps`` itself, and evaluated once: at its end, over the whole validation split.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command does

from gptfit.config import Recipe
from gptfit.data import TextSource
from gptfit.errors import GptfitError
from gptfit.train import run as runs
from gptfit.train.interrupt import Interrupt


def recipe_of(preset: str, steps: int | None, variant: str) -> Recipe:
    """The preset with the overrides of ``variant``, which is evaluated when it has ended."""
    equal = [] if steps is None else [f"max_steps={steps}"]
    recipe = Recipe.resolve(preset, overrides=[*equal, *variant.split()])
    if recipe.train.max_steps is None:
        raise SystemExit(f"{preset} does not say for how many steps: give --steps")
    ends = {"train.eval_interval": recipe.train.max_steps, "train.eval_tokens": None}
    return recipe.override(ends | {"train.sample_interval": 0}, "this benchmark")


def line(name: str, recipe: Recipe, text: TextSource) -> str:
    """A row of the table, trained now."""
    with tempfile.TemporaryDirectory(prefix="gptfit-variant-") as folder:
        run = Path(folder) / "run"
        with runs.new_run(run):
            dataset = runs.prepare_data(run, recipe.data, text)
            trainer = runs.start(run, recipe, dataset)
        outcome = trainer.run(lambda event: None, Interrupt())
        assert outcome.best is not None
        assert outcome.best_step == outcome.step
        bits = trainer.bits_per_byte(outcome.best)
        milliseconds = 1000 * trainer.tokens_per_step / trainer.tokens_per_second()
    return (
        f"| {name or 'as it is'} | {outcome.step} | {outcome.best.loss:.4f} | {bits:.4f} | "
        f"{milliseconds:.1f} |"
    )


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="FILE", help="text; without it the embedded one")
    parser.add_argument("--preset", default="shakespeare-char-cpu-fast")
    parser.add_argument("--steps", type=int, help="of each; without it the preset's")
    parser.add_argument("variants", nargs="+", metavar='"KEY=VALUE ..."')
    asked = parser.parse_args()
    try:
        text = TextSource.from_paths([asked.data]) if asked.data else TextSource.embedded()
        recipes = [recipe_of(asked.preset, asked.steps, name) for name in asked.variants]
        print("| change | steps | nats/token | bits/byte | ms/step |\n|---|---|---|---|---|")
        for name, recipe in zip(asked.variants, recipes, strict=True):
            print(line(name, recipe, text), flush=True)
    except GptfitError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
