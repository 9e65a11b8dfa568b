"""``python -m multipde`` is the command ``multipde``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, whose files may have the names of libraries
    from multipde.cli.main import main

    main()
