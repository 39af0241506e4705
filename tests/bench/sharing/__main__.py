"""``ci/sharing``: see the package."""

import argparse
from pathlib import Path

from . import plot, rates, swap, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/sharing", description="What sharing a device costs.")
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    one = commands.add_parser("rates", help="bursts in turn: shared, and a third each (minutes)")
    one.add_argument("--rates", default="2,4,8,16,24,32", help="requests a second in a burst")
    one.add_argument("--repeats", type=int, default=2)
    one.set_defaults(
        run=lambda options: rates.table([*map(float, options.rates.split(","))], options.repeats)
    )
    two = commands.add_parser("table", help="fairness, guarantees, recovery (two minutes)")
    two.add_argument("--quick", action="store_true", help="with less to do")
    two.set_defaults(run=lambda options: table.measured(quick=options.quick))
    three = commands.add_parser("swap", help="three models in memory for one (a minute)")
    three.set_defaults(run=lambda options: swap.measured())
    four = commands.add_parser("plot", help="the rates that a page has, as a picture")
    four.add_argument("page", type=Path)
    four.add_argument("picture", type=Path)
    four.set_defaults(run=lambda options: plot.draw(options.page, options.picture), markdown=None)
    for command in (one, two, three):
        command.add_argument("--markdown", type=Path, help="write it there, with machine and date")
    options = parser.parse_args()
    found = options.run(options)
    print(found)
    if options.markdown:
        options.markdown.write_text(f"{rates.head()}\n\n{found}\n")


main()
