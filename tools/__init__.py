"""Scripts for those who work on ZeMosaic: pictures of the windows, tables of the documents, the star catalogue."""
