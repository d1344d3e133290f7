"""The results of a preset as pages to read in a browser, from what lies in its folder."""
