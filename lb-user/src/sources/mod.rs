//! Where objects come from. Sources parse and never interpret.
