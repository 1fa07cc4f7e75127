"""What hosts must be able to do before anything starts there."""
