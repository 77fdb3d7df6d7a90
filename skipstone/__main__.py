"""`python -m skipstone`."""

from .cli import main

main()
