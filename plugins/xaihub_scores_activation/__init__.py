"""ScoresActivation."""
