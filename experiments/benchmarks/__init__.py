"""What derivatives, steps and attacks cost on the machine at hand, beside how accurate they are."""
