"""Hypotheses H1 to H4 and gates G0 to G4 about agents, and the races that they are decided on."""
