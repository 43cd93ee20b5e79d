"""What crosses between the processes; imports neither of their rooms."""
