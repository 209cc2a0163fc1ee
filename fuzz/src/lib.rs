//! Generators of scripts, oracles over the board, and the libFuzzer targets.
