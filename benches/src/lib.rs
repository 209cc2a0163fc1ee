//! What an exit costs.
