//! (being built in its own branch)
