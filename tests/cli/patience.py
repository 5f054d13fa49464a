"""The command with all the time in the world: on a busy machine, parts that answer may be late with it."""

PATIENCE_S = 60.0
MODULES = ("cli.certificates", "cli.dial", "cli.flow_source", "cli.resources", "cli.status", "cli.token")
"""Where `TIMEOUT_S` is."""
PROGRAM = f"import cli.main, {', '.join(MODULES)}\n{' = '.join(f'{one}.TIMEOUT_S' for one in MODULES)} = {PATIENCE_S}\n"
"""What comes before `cli.main.main()`."""
