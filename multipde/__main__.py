"""``python -m multipde`` is the command ``multipde``."""

from multipde.cli.main import main

if __name__ == "__main__":
    main()
