"""What was claimed of agents, decided on scores of single samples: `skipstone evaluate agent`."""
