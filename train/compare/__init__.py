"""Grade losses, samplings, task weightings and grade heads compared on a small, fixed data set of phantoms."""
