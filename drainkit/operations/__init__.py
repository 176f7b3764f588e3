"""What an operator asks between drains."""
