"""The `weft` command. Every group of commands is a module of its own, loaded when it is used."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.failure import warn
from cli.group import Group
from wire.places import PlacesError

# gRPC's library writes remarks of its own to stderr, a goaway of a stopping agent for one: ours says what a user needs.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_COMMANDS = {
    "lab": "cli.lab",
    "status": "cli.status",
    "workloads": "cli.resources",
    "services": "cli.resources",
    "policies": "cli.resources",
    "certificates": "cli.certificates",
    "connections": "cli.connections",
    "observe": "cli.observe",
    "apply": "cli.manifests",
    "delete": "cli.manifests",
    "token": "cli.token",
    "version": "cli.version",
    "completion": "cli.completion",
}
_HELP = {
    "lab": "A throw-away mesh on this machine.",
    "status": "Show what runs, and what is wrong.",
    "workloads": "List the workloads that the mesh knows.",
    "services": "List the services that the mesh knows.",
    "policies": "List the policies in force.",
    "certificates": "List the proxies' certificates.",
    "connections": "List the open connections.",
    "observe": "Show flows: who connected to whom, and what became of it.",
    "apply": "Put manifests in force.",
    "delete": "Take manifests out of force.",
    "token": "Issue a node's credential for the control plane.",
    "version": "Show the versions of all parts.",
    "completion": "Print the shell's completion script.",
}


class _Commands(Group):
    """Commands by name; help and completion of the names load none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=_HELP[name]) for name in _COMMANDS if name.startswith(incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """What fails among several tasks fails as by itself: click knows closed pipes, `main` the rest."""
        try:
            return super().invoke(ctx)
        except ExceptionGroup as group:
            error: Exception = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_HELP.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
\b
Examples:
  weft lab up                 a mesh of two nodes on this machine
  weft status                 what runs, and what is wrong
  weft observe -f             every connection as it happens
  weft apply -f policy.yaml   in force within moments

\b
WEFT_RUN_DIR, WEFT_STATE_DIR and WEFT_PREFIX name another installation than the default one.
""",
)
def weft() -> None:
    """A service mesh without sidecars: run it, look inside, watch its flows."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed or something is wrong, 2 wrongly called."""
    try:
        weft.main(prog_name="weft")
    except PlacesError as error:
        warn(str(error))
        sys.exit(2)
    except PermissionError as error:
        warn(f"no permission to open {error.filename}; run as root")
        sys.exit(1)
    except OSError as error:
        warn(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        if sys.stdout is not None:
            with suppress(OSError):
                sys.stdout.close()  # what it could not take, Python 3.13 would try again at its end, and exit with 120
        sys.exit(1)
    except Exception as error:
        # What is reached here is a mistake of this program: still one line, with the way to more.
        if os.environ.get("WEFT_DEBUG"):
            raise
        warn(f"internal error: {type(error).__name__}: {error}; WEFT_DEBUG=1 shows where")
        sys.exit(1)


if __name__ == "__main__":
    main()
