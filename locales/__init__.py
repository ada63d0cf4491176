"""The texts of ZeMosaic, one JSON file per language."""
