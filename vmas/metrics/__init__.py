"""One module a metric (section 5.2). Arrays in, numbers out: no metric knows a model."""
