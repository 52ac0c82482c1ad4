"""What the commands share; it imports no command."""
