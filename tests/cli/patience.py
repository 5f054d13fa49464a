"""The command with all the time in the world: on a busy machine, parts that answer may be late with it."""

PATIENCE_S = 60.0
"""In the place of `cli.dial.TIMEOUT_S`."""
PROGRAM = f"import cli.dial\ncli.dial.TIMEOUT_S = {PATIENCE_S}\nimport cli.main\n"
"""What comes before `cli.main.main()`."""
DEADLINE_S = 100
"""For a command that answers, or ends, as soon as the machine has time for it."""
