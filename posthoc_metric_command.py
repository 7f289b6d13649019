"""The ``posthoc-metric`` command.

It stands outside the package so that Ctrl-C is met while the package, and torch with it, is still being imported.
"""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Import the command line and run it; Ctrl-C on the way ends in one line and exit code 130."""
    try:
        # ignored, as in the background, it stays so
        heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if heard:
            signal.signal(signal.SIGINT, _stop)
        from posthoc_metric.cli import main as command

        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once: an exception on its way through torch's C++, which calls Python as it is imported, aborts."""
    try:
        os.write(2, b"Stopped.\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()
