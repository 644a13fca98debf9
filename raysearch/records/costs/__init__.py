"""What an assignment costs, and the limits of that."""
