"""Text of others as a part of one line: for terminals and logs, which nobody is to steer, or to write lines of his own into."""


def one_line(text: str) -> str:
    """The text with what cannot be printed escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
