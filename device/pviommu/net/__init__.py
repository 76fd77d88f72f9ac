"""Ethernet frames: offloads that are carried out or passed on, what a card receives, captures. Knows no device."""
