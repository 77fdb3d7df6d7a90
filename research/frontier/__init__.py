"""The frontier on networks that nobody tuned on: rivals, terms and the table, one family left out at a time."""
