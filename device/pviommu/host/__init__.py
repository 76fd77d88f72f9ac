"""What serves the functions of a machine: the loop, its pace, and who gets how much of it."""
