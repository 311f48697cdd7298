"""``python -m gptfit``."""

from gptfit.cli import main

main()
