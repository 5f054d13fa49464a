"""A group of commands that, of one that is misspelt, names the nearest."""

from difflib import get_close_matches

import click


class Group(click.Group):
    """As click's, which does so for options alone."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group."""
        name, known = args[0], self.list_commands(ctx)
        near = [] if name in known or name.startswith("-") else get_close_matches(name, known, 1)
        if near:
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)
