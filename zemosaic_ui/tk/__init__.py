"""Thin Tk views on the models of zemosaic_ui."""
