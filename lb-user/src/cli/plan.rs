//! `beeline plan`: the map writes that a directory of YAML would cause.
