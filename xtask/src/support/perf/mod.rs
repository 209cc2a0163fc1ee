//! Measurements over time: their history, and whether something became worse.

pub mod chart;
pub mod criterion;
pub mod export;
pub mod flags;
pub mod history;
pub mod judge;
pub mod measure;
pub mod page;
pub mod record;
pub mod schema;
pub mod stats;
pub mod tree;
pub mod versus;
