"""Which weft this is; pyproject.toml and the images say the same."""

VERSION = "0.1.0"
