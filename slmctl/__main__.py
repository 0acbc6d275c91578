"""`python -m slmctl`, the same as `slmctl`."""

from slmctl.cli.main import main

if __name__ == "__main__":
    main()
