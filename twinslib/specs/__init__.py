"""What a run, an evaluation and a certification is, and what its parts are called."""
