//! PostgreSQL servers: the client, and what is built on it.

pub mod client;
pub mod wal;
