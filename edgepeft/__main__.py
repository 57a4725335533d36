"""``python -m edgepeft``."""

from .cli import main

main()
