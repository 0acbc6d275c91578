"""`slmctl` and `python -m slmctl`: the command line, which Ctrl-C
ends with 130 from its first import on.
"""

import os
import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from slmctl.cli.main import main as run

        run()
    except KeyboardInterrupt:  # before the command, or behind it
        os.write(2, b"  interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
