"""Networks: by name, with two wings, folded, and from files of others."""
