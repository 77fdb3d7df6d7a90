"""The commands `skipstone bench`, `skipstone report` and `skipstone prefer`."""
