"""The command `skipstone train`."""
