"""Speed of this code against plain implementations of the same mathematics; see README.md."""
