"""What derivatives, steps and attacks cost on the machine at hand, and how accurate they are."""
