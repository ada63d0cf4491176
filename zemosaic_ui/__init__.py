"""Everything a window needs to know, without any toolkit."""
