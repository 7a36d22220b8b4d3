"""The measurements of `make bench`: calls a second, delays and big lists, as ratios within one run."""
