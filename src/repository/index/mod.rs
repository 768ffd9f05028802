//! The index of a snapshot: layers of sorted lines, merged on reading, newest wins (FORMAT.md §2.4).
//!
//! Nothing here holds a whole map: writers and readers keep one index object a layer in memory.

mod layer;
mod line;
mod merge;

pub use layer::{IndexStore, LayerReader, LayerWriter, ObjectWriter, Put, decode_object};
pub use line::{Extent, PackLine, Segment, id_bytes};
pub use merge::{Merge, MergedEntry, layers_to_fold, read_pack_lines};
