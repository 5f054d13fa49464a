"""Text of others where it is shown: for terminals and logs, which nobody is to steer, or to write lines of his own into."""


def one_line(text: str) -> str:
    """The text with what cannot be printed escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def as_text(name: str) -> str:
    """The name of a file, which need not be text, as a message can carry it: with escapes for what is none."""
    return name.encode(errors="backslashreplace").decode()
