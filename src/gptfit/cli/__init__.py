"""The command line."""


def main() -> None:
    """Placeholder until the verbs land."""
