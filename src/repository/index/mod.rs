//! The index of a snapshot: layers of sorted lines, merged on reading, newest wins (FORMAT.md §2.4).
//!
//! Nothing here holds a whole map: writers and readers keep one index object a layer in memory; what must be sorted or looked up goes through temporary tables.

mod layer;
mod line;
mod merge;
mod table;

pub use layer::{IndexStore, LayerReader, LayerWriter, ObjectWriter, Put, decode_object};
pub use line::{Extent, PackLine, Segment, id_bytes};
pub use merge::{Merge, MergedEntry, layers_to_fold, read_pack_lines};
pub use table::{BasisTable, LineTable, LinesOut, SortedList};
