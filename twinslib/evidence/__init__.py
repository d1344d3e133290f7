"""All that is finished as rows, and the effects in it."""
