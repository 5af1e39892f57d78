"""Flower: what travels, what a site does with it, and the round loop. Only this room and `engines` know flwr."""
