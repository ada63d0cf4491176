"""Thin Qt views on the models of zemosaic_ui."""
