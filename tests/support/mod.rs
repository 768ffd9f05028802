//! What several test binaries share: real servers, and a bad network between them and us.
#![allow(dead_code, clippy::print_stdout, reason = "each test binary uses its own part; what is skipped is said")]

pub mod binary;
pub mod engines;
pub mod gate;
pub mod postgres;
pub mod proxy;
pub mod servers;
pub mod small;
