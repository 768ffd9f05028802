//! The data path of a backup: one reader (the caller's thread) cuts the source into batches, workers carry each batch all the
//! way, a collector writes the new layer. All queues are bounded; DESIGN rule 17 bounds the packs.

mod batch;
mod chunks;
mod collector;
mod cut;
mod layers;
mod pack;
mod pages;
mod reader;
mod spool;
mod store;
mod table;
mod uploads;
mod worker;

pub use spool::SpoolPlace;
pub use store::{Basis, BasisPack, Options, Stored, Target, store};
