"""The ``posthoc-metric`` command.

It stands outside the package so that Ctrl-C is met while the package, and torch with it, is still being imported.
"""

import sys


def main() -> None:
    """Import the command line and run it; Ctrl-C on the way ends in one line and exit code 130."""
    try:
        from posthoc_metric.cli import main as command

        command()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
