"""One page on runs: what is read off them, over seeds, as charts, sections and words."""
