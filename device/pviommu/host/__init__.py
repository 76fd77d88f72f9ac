"""What serves the functions of a machine: the loop, its pace, and how its time is shared out."""
