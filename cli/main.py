"""The command ``multipde``: parses, calls the library, and turns its errors into one line."""

import sys
from collections.abc import Sequence

import tyro

from multipde.cli.bench import Bench
from multipde.cli.convert import Convert
from multipde.cli.evaluate import Evaluate
from multipde.cli.inspect import Inspect
from multipde.cli.train import Train

COMMANDS = {"train": Train, "convert": Convert, "evaluate": Evaluate, "inspect": Inspect, "bench": Bench}

DESCRIPTION = """Convolution stencils as differential operators: networks that move between image resolutions.

Start with `multipde train`: it trains coarse to fine on embedded data and needs no arguments."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 with one line on bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        from multipde import __version__

        print(f"multipde {__version__}")
        return
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="multipde", description=DESCRIPTION, args=arguments, sort_subcommands=False
    )
    try:
        command.run_command()
    except (ValueError, OSError) as error:
        print(f"multipde: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("multipde: interrupted", file=sys.stderr)
        sys.exit(130)
