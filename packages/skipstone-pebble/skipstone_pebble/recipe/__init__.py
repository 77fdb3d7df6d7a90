"""How Pebble, Pebble-DiT and their judge are trained from nothing."""
