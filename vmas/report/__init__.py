"""Tables and figures from records: the only place that turns numbers into something to look at."""
