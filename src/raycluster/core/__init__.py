"""What every part of the program stands on."""
