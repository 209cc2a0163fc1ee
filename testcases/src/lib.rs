//! What is tested: declarative cases, and the runner.
