"""One module a target of the paper: what to run and which rows it gives. `registry` names them all."""
