"""One declaration per option."""
