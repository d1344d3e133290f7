"""From archives to images on the device."""
