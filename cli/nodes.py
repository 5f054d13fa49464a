"""Which nodes a command is about: the `--node` option, with names completed from the nodes of this machine."""

import click
from click.shell_completion import CompletionItem

from wire.places import Places


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        known = Places.from_environment().nodes()
    except OSError:
        return []
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


node_option = click.option(
    "--node", multiple=True, metavar="NAME", help="Only this node; may be repeated.  [default: all]", shell_complete=_complete
)
