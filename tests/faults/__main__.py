"""The whole campaigns: python -m tests.faults NAME; appends a row to examples/results/faults.jsonl with --out."""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

from multipde.storage.provenance import machine, versions
from multipde.storage.rows import append_row
from tests.faults import environments, epochs, exact, foreign, fuzz, kill, load, nodes, operations, reorder, structure

DEFAULT = {
    **{"kill": 200, "operations": 1, "reorder": 1, "exact": 1, "fuzz": 5000, "structure": 10_000, "foreign": 20_000},
    **{"load": 200_000, "environments": 200, "shards": 125_000, "nodes": 10, "epochs": 3000},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("campaign", choices=DEFAULT)
    parser.add_argument(
        "--num",
        type=int,
        help="kills, files, records, cases, commands or images; for the others: only every n-th step or operation",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of rows to append to")
    args = parser.parse_args()
    num = args.num or DEFAULT[args.campaign]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        if args.campaign == "kill":
            counts = kill.campaign(num, args.seed, place)
        elif args.campaign == "exact":
            counts = exact.campaign(place, every=num)
        elif args.campaign == "operations":
            counts = operations.campaign(place, every=num, seed=args.seed)
        elif args.campaign == "reorder":
            counts = reorder.campaign(place, seed=args.seed, every=num)
        elif args.campaign == "structure":
            counts = structure.campaign(num, args.seed, place)
        elif args.campaign == "fuzz":
            counts = fuzz.campaign(num, args.seed, place)
        elif args.campaign == "environments":
            counts = environments.campaign(num, args.seed, place)
        elif args.campaign == "foreign":
            counts = foreign.campaign(num, args.seed, place)
        elif args.campaign == "nodes":
            counts = nodes.campaign(num, args.seed, place)
        elif args.campaign == "epochs":
            counts = epochs.campaign(num, args.seed, place)
        elif args.campaign == "shards":
            counts = load.campaign(num, place, epochs=5, shards=True)
        else:
            counts = load.campaign(num, place)
    row = {"campaign": args.campaign, "seed": args.seed, **counts, "date": date.today().isoformat()}
    print(json.dumps(row), flush=True)
    if args.out is not None:
        append_row(args.out, row | {"versions": versions(), "machine": machine()})


if __name__ == "__main__":
    main()
