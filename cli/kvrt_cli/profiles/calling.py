"""What a command would be called with; it is not called."""

import copy
from collections.abc import Sequence

import click

from kvrt_cli.profiles.keys import children, settable
from kvrt_cli.profiles.origins import Call, call_of

JSON = "--json"


def would_call(root: click.Context, words: Sequence[str]) -> tuple[Call, bool]:
    """What a command line would call, although it may lack what is required.

    Args:
        root: of `kvrt` itself.
        words: a command, and what follows it.

    Returns:
        The call, and whether ``--json`` stands among the words of a command that has no such
        option: it is for who asks, then.

    Raises:
        click.UsageError: there is no such command, or it has no such options.
    """
    ctx, command, args = root, root.command, list(words)
    while (below := children(command)) and args and args[0] in below:
        name = args.pop(0)
        command = below[name]
        ctx = click.Context(command, parent=ctx, info_name=name)
    if ctx is root or not settable(command):
        known = ", ".join(children(command))
        what = f"{words[0]:.60}" if ctx is root else ctx.command_path
        raise click.UsageError(
            f"{what} is no command that has options" + (f"; choose from {known}" if known else "")
        )
    as_json = JSON in args and not any(JSON in param.opts for param in command.params)
    if as_json:
        args.remove(JSON)
    command = copy.copy(command)
    command.params = [copy.copy(param) for param in command.params]
    for param in command.params:
        param.required = False
    made = command.make_context(ctx.info_name, args, parent=ctx.parent)
    call = call_of(made.meta)
    if call is None:
        raise click.UsageError(f"{ctx.command_path} takes no profile")
    return call, as_json
